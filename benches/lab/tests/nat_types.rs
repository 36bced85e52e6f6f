//! Every NAT profile is what it says it is, measured from outside.

use mesh_lab::{Lab, Nat, NatType, Site, Topology};

#[test]
fn all_nine_types_measure_as_wanted() {
    let lab = Lab::new("nat").unwrap();
    let sites =
        NatType::all().map(|kind| Site::behind(&kind.to_string(), Nat::of(kind)).host(&format!("pc-{kind}")));
    let network = lab.build(sites.fold(Topology::new(), Topology::site)).unwrap();
    let observers = network.observers().unwrap();
    for kind in NatType::all() {
        let host = network.host(&format!("pc-{kind}")).unwrap();
        assert_eq!(observers.measure(host.netns()).unwrap(), kind);
    }
}
