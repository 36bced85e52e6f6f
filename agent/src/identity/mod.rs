//! Who this node is: its keys, its membership, and the state directory that holds them.
