//! `weightd-csi`: the CSI driver of a node.

fn main() {}
