//! From snapshots to what people and scripts are shown: pure.
