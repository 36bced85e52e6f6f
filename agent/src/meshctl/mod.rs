//! The commands of `meshctl`.
