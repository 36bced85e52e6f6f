//! The settings of `mesh-coordinator serve`.

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use mesh_proto::DEFAULT_COORDINATOR_PORT;
use mesh_settings::Settings;

use super::{
    DEFAULT_STATE_DIR, Host, Problems, ServeArgs,
    parse::{parse_host, parse_listen, parse_metrics, parse_path, parse_prefix, parse_range, parse_rate},
    relay_limits,
};
use crate::{
    dyndns::{
        DynDnsOptions, Endpoint, Ipv6, Provider,
        duckdns::{self, parse_domain},
    },
    kubernetes::{
        DEFAULT_AUDIENCE, DEFAULT_SERVICE_ACCOUNT, InvalidServiceAccount, KubernetesOptions, ServiceAccount,
    },
    registry::{MeshOptions, RoutePolicy},
    serve::ServeOptions,
};

/// Where metrics are shown when it is not told.
const DEFAULT_METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9743);

/// The range of IPv4 mesh addresses: private, and not where carriers put their NATs (RFC 6598).
const DEFAULT_IPV4_RANGE: &str = "10.90.0.0/16";

/// What systemd calls the DuckDNS token when it hands it over.
const CREDENTIAL: &str = "duckdns-token";

pub(super) fn from_sources(
    args: &ServeArgs,
    state_dir: Option<&str>,
    environment: impl Fn(&str) -> Option<OsString>,
    host: &Host<'_>,
) -> Result<ServeOptions, Problems> {
    let mut settings = Settings::new(environment, host.file)?;
    let state_dir = settings.take("state-dir", state_dir, parse_path);
    let any = SocketAddr::new(host.any, DEFAULT_COORDINATOR_PORT);
    let parse_listen = |text: &str| parse_listen(text, any);
    let listen_udp = settings.take("listen-udp", args.listen_udp.as_deref(), parse_listen);
    let listen_tcp = settings.take("listen-tcp", args.listen_tcp.as_deref(), parse_listen);
    let listen_stun = settings.take("listen-stun", args.listen_stun.as_deref(), parse_listen);
    let metrics = settings.take("metrics", args.metrics.as_deref(), parse_metrics);
    let ipv4 = settings.take("ipv4-range", args.ipv4_range.as_deref(), parse_range);
    let relay_rate = settings.take("relay-rate", args.relay_rate.as_deref(), parse_rate);
    let listen_udp = listen_udp.unwrap_or(any);
    let port = match listen_udp.port() {
        0 => DEFAULT_COORDINATOR_PORT,
        port => port,
    };
    let mut coordinators = settings.take_list("name", &args.name, |text| parse_host(text, port));
    if coordinators.is_empty() {
        coordinators.extend(settings.check("--name", host.name, |text| {
            parse_host(text, port).map_err(|_| "this host's name is none: give one".to_owned())
        }));
    }
    let routes = RoutePolicy {
        pod_ranges: settings.take_list("pod-range", &args.pod_range, parse_prefix),
        approved: settings.take_list("approve-routes", &args.approve_routes, parse_prefix),
    };
    let dyndns = dyndns(&mut settings, args, &coordinators, host.credentials);
    let kubernetes = kubernetes(&mut settings, args);
    let default_range = settings.check("ipv4-range", DEFAULT_IPV4_RANGE, parse_range);
    settings.finish()?;
    let relay_name = coordinators.first().map(|name| relay_name(name)).unwrap_or_default();
    Ok(ServeOptions {
        state_dir: state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
        listen_udp,
        listen_tcp: listen_tcp.unwrap_or(any),
        listen_stun,
        metrics: metrics.unwrap_or(Some(DEFAULT_METRICS)),
        mesh: MeshOptions {
            ipv4: ipv4.or(default_range).expect("the default range is a range"),
            coordinators,
            relay_name,
            routes,
        },
        relay: relay_limits(relay_rate),
        dyndns,
        kubernetes,
    })
}

/// What is to be kept pointing here: something if there is a token, or a name was asked for.
fn dyndns<E: Fn(&str) -> Option<OsString>>(
    settings: &mut Settings<E>,
    args: &ServeArgs,
    coordinators: &[String],
    credentials: Option<&Path>,
) -> Option<DynDnsOptions> {
    let domain = settings.take("duckdns-domain", args.duckdns_domain.as_deref(), parse_domain);
    let token_file = settings.take("duckdns-token-file", args.duckdns_token_file.as_deref(), parse_path);
    let endpoint = settings.take("duckdns-url", args.duckdns_url.as_deref(), |text| {
        text.parse::<Endpoint>().map_err(|error| error.to_string())
    });
    let ipv6 = settings.take("duckdns-ipv6", args.duckdns_ipv6.as_deref(), str::parse::<Ipv6>);
    let handed_over = credentials.map(|folder| folder.join(CREDENTIAL)).filter(|file| file.exists());
    let token_file = token_file.or(handed_over);
    if domain.is_none() && token_file.is_none() {
        return None;
    }
    let host = |name: &String| name.rsplit_once(':').map_or(name.clone(), |(host, _)| host.to_owned());
    let mut named = coordinators.iter().map(host).filter(|name| name.ends_with(duckdns::SUFFIX));
    let domain = domain.or_else(|| named.find_map(|name| parse_domain(&name).ok()));
    settings.require("duckdns-domain", domain.is_some());
    settings.require("duckdns-token-file", token_file.is_some());
    let default = duckdns::ENDPOINT.parse().expect("the keeper's own address");
    Some(DynDnsOptions {
        provider: Provider::DuckDns,
        domain: domain?,
        token_file: token_file?,
        endpoint: endpoint.unwrap_or(default),
        ipv6: ipv6.unwrap_or_default(),
    })
}

/// Whose tokens stand in for join tokens: somebody's, if there is a way to have them checked.
fn kubernetes<E: Fn(&str) -> Option<OsString>>(
    settings: &mut Settings<E>,
    args: &ServeArgs,
) -> Option<KubernetesOptions> {
    let kubeconfig =
        settings.take("kubernetes-kubeconfig", args.kubernetes_kubeconfig.as_deref(), parse_path);
    let audience = settings.take("kubernetes-audience", args.kubernetes_audience.as_deref(), |text| {
        if text.is_empty() { Err("an audience is not empty".to_owned()) } else { Ok(text.to_owned()) }
    });
    let parse_account =
        |text: &str| text.parse::<ServiceAccount>().map_err(|error: InvalidServiceAccount| error.to_string());
    let service_account = settings.take(
        "kubernetes-service-account",
        args.kubernetes_service_account.as_deref(),
        parse_account,
    );
    if kubeconfig.is_none() && (audience.is_some() || service_account.is_some()) {
        settings.require("kubernetes-kubeconfig", false);
    }
    let default = DEFAULT_SERVICE_ACCOUNT.parse().expect("the DaemonSet's ServiceAccount is one");
    Some(KubernetesOptions {
        kubeconfig: kubeconfig?,
        audience: audience.unwrap_or_else(|| DEFAULT_AUDIENCE.to_owned()),
        service_account: service_account.unwrap_or(default),
    })
}

/// The relay is called as the coordinator: by the first label of a name, or the whole of an address.
fn relay_name(coordinator: &str) -> String {
    match coordinator.parse::<SocketAddr>() {
        Ok(address) => address.ip().to_string(),
        Err(_) => coordinator.split(['.', ':']).next().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv6Addr, path::Path};

    use super::*;

    fn resolve(args: &ServeArgs, environment: &[(&str, &str)], file: &str) -> Result<ServeOptions, Problems> {
        let environment = |name: &str| {
            environment.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(*value))
        };
        let any = Ipv6Addr::UNSPECIFIED.into();
        from_sources(args, None, environment, &Host { name: "pi", any, file, credentials: None })
    }

    #[test]
    fn defaults_need_no_settings() {
        let options = resolve(&ServeArgs::default(), &[], "").unwrap();
        assert_eq!(options.state_dir, Path::new(DEFAULT_STATE_DIR));
        assert_eq!(options.listen_udp.to_string(), "[::]:7443");
        assert_eq!(options.listen_tcp.to_string(), "[::]:7443");
        assert_eq!(options.metrics.unwrap().to_string(), "127.0.0.1:9743");
        assert_eq!(options.mesh.coordinators, ["pi:7443"]);
        assert_eq!(options.mesh.ipv4.to_string(), DEFAULT_IPV4_RANGE);
    }

    #[test]
    fn flags_win_over_environment_and_environment_over_the_file() {
        let args = ServeArgs { listen_udp: Some("127.0.0.1:1".to_owned()), ..ServeArgs::default() };
        let environment = [
            ("MESH_LISTEN_UDP", "127.0.0.1:2"),
            ("MESH_LISTEN_TCP", "2"),
            ("MESH_NAME", "a.example, b.example:9"),
        ];
        let file = "listen-udp = '127.0.0.1:3'\nlisten-tcp = 3\nmetrics = 'off'\nname = 'c'";
        let options = resolve(&args, &environment, file).unwrap();
        assert_eq!(options.listen_udp.to_string(), "127.0.0.1:1");
        assert_eq!(options.listen_tcp.to_string(), "[::]:2");
        assert_eq!(options.metrics, None);
        assert_eq!(
            options.mesh.coordinators,
            ["a.example:1", "b.example:9"],
            "the port is the one listened on"
        );
        assert_eq!(options.mesh.relay_name, "a");
        let options = resolve(&ServeArgs::default(), &[], "name = ['192.0.2.1', '2001:db8::1']").unwrap();
        assert_eq!(options.mesh.coordinators, ["192.0.2.1:7443", "[2001:db8::1]:7443"]);
    }

    #[test]
    fn everything_that_is_wrong_is_reported_at_once() {
        let args = ServeArgs { name: vec!["a b".to_owned(), "x:0".to_owned()], ..ServeArgs::default() };
        let environment = [("MESH_LISTEN_TCP", "nowhere"), ("MESH_RELAY_RATE", "1")];
        let file = "metrics = true\nipv4-range = '10.0.0.0'\nport = 1";
        let Problems(problems) = resolve(&args, &environment, file).unwrap_err();
        let settings: Vec<_> = problems.iter().map(|problem| problem.setting.as_str()).collect();
        assert_eq!(
            settings,
            ["MESH_LISTEN_TCP", "metrics", "ipv4-range", "MESH_RELAY_RATE", "--name", "--name", "port"]
        );
        let text = Problems(problems.clone()).to_string();
        assert_eq!(text.lines().count(), settings.len(), "{text}");
    }

    #[test]
    fn a_dynamic_name_is_kept_where_there_is_a_token() {
        assert_eq!(resolve(&ServeArgs::default(), &[], "name = 'pi.duckdns.org'").unwrap().dyndns, None);
        let file = "name = ['192.0.2.1', 'Pi.duckdns.org:443']\nduckdns-token-file = '/t'";
        let kept = resolve(&ServeArgs::default(), &[], file).unwrap().dyndns.unwrap();
        assert_eq!((kept.domain.as_str(), kept.token_file.as_path()), ("pi", Path::new("/t")));
        assert_eq!(kept.endpoint.to_string(), "https://www.duckdns.org:443/update");
        assert_eq!(kept.ipv6, Ipv6::Off);
        let with_ipv6 = |text: &str| {
            let args = ServeArgs { duckdns_ipv6: Some(text.to_owned()), ..ServeArgs::default() };
            resolve(&args, &[], file).map(|options| options.dyndns.unwrap().ipv6)
        };
        assert_eq!(with_ipv6("auto").unwrap(), Ipv6::Auto);
        assert_eq!(with_ipv6("2a00::7").unwrap(), Ipv6::Address("2a00::7".parse().unwrap()));
        assert!(with_ipv6("fd00::7").is_err() && with_ipv6("192.0.2.1").is_err());
        for (file, setting) in [
            ("name = 'pi.example'\nduckdns-token-file = '/t'", "--duckdns-domain"),
            ("duckdns-domain = 'pi'", "--duckdns-token-file"),
            ("duckdns-domain = 'a b'", "duckdns-domain"),
        ] {
            let Problems(problems) = resolve(&ServeArgs::default(), &[], file).unwrap_err();
            assert!(problems.iter().any(|problem| problem.setting == setting), "{problems:?}");
        }
        let credentials = tempfile::tempdir().unwrap();
        std::fs::write(credentials.path().join(CREDENTIAL), "x").unwrap();
        let any = Ipv6Addr::UNSPECIFIED.into();
        let host =
            Host { name: "pi", any, file: "name = 'pi.duckdns.org'", credentials: Some(credentials.path()) };
        let kept = from_sources(&ServeArgs::default(), None, |_| None, &host).unwrap().dyndns.unwrap();
        assert_eq!(kept.token_file, credentials.path().join(CREDENTIAL));
    }

    #[test]
    fn tokens_of_service_accounts_are_taken_where_they_can_be_checked() {
        assert_eq!(resolve(&ServeArgs::default(), &[], "").unwrap().kubernetes, None);
        let resolved = resolve(&ServeArgs::default(), &[("MESH_KUBERNETES_KUBECONFIG", "/k")], "").unwrap();
        let kubernetes = resolved.kubernetes.unwrap();
        assert_eq!(kubernetes.kubeconfig, Path::new("/k"));
        assert_eq!(kubernetes.audience, DEFAULT_AUDIENCE);
        assert_eq!(kubernetes.service_account.to_string(), DEFAULT_SERVICE_ACCOUNT);
        for (file, setting) in [
            ("kubernetes-audience = 'a'", "--kubernetes-kubeconfig"),
            ("kubernetes-kubeconfig = '/k'\nkubernetes-audience = ''", "kubernetes-audience"),
            ("kubernetes-kubeconfig = '/k'\nkubernetes-service-account = 'a'", "kubernetes-service-account"),
        ] {
            let Problems(problems) = resolve(&ServeArgs::default(), &[], file).unwrap_err();
            assert!(problems.iter().any(|problem| problem.setting == setting), "{file}: {problems:?}");
        }
    }

    #[test]
    fn a_file_that_is_no_toml_is_refused() {
        assert!(resolve(&ServeArgs::default(), &[], "name = ").is_err());
    }
}
