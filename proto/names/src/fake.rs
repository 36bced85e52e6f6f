//! A name server in a test's hands.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{CNAME, SOA},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
    task::JoinHandle,
};

use super::system::Files;

/// What it does with a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// It says nothing.
    Silence,
    /// It fails.
    Failure(ResponseCode),
    /// There is no such name, and that holds so many seconds.
    NoName(u32),
    /// These addresses, as far as they are of the family asked for, for so many seconds.
    Addresses(Vec<IpAddr>, u32),
    /// An alias for so many seconds, and its addresses for so many.
    Alias(&'static str, u32, Vec<IpAddr>, u32),
    /// Too long for UDP; then these.
    Truncated(Vec<IpAddr>, u32),
}

/// A name server; it stops when it is dropped.
pub(crate) struct FakeServer {
    pub(crate) address: SocketAddr,
    questions: Arc<AtomicUsize>,
    tasks: [JoinHandle<()>; 2],
}

impl FakeServer {
    /// Starts one that answers by name and kind.
    pub(crate) async fn start(
        at: &str,
        reply: impl Fn(&str, RecordType) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let udp = UdpSocket::bind(at).await.unwrap();
        let address = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(address).await.unwrap();
        let (reply, questions) = (Arc::new(reply), Arc::new(AtomicUsize::new(0)));
        let over_tcp = reply.clone();
        let counted = questions.clone();
        let tasks = [
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                loop {
                    let (len, from) = udp.recv_from(&mut buffer).await.unwrap();
                    counted.fetch_add(1, Relaxed);
                    if let Some(answer) = answer(&buffer[..len], &*reply, true) {
                        udp.send_to(&answer, from).await.unwrap();
                    }
                }
            }),
            tokio::spawn(async move {
                loop {
                    let (mut stream, _) = tcp.accept().await.unwrap();
                    let mut buffer = vec![0; usize::from(stream.read_u16().await.unwrap())];
                    stream.read_exact(&mut buffer).await.unwrap();
                    let Some(answer) = answer(&buffer, &*over_tcp, false) else { continue };
                    stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
                    stream.write_all(&answer).await.unwrap();
                }
            }),
        ];
        Self { address, questions, tasks }
    }

    /// How often it was asked over UDP.
    pub(crate) fn questions(&self) -> usize {
        self.questions.load(Relaxed)
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Writes the system's files: these servers, which share a port, and nothing else.
pub(super) fn files(dir: &Path, servers: &[&str], port: u16) -> Files {
    let files = Files {
        resolv_conf: dir.join("resolv.conf"),
        hosts: dir.join("hosts"),
        nsswitch: dir.join("nsswitch.conf"),
        port,
    };
    std::fs::write(&files.nsswitch, "hosts: files dns\n").unwrap();
    write_servers(&files, servers);
    files
}

/// Writes other servers.
pub(super) fn write_servers(files: &Files, servers: &[&str]) {
    let lines: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    std::fs::write(&files.resolv_conf, lines).unwrap();
}

fn answer(question: &[u8], reply: &dyn Fn(&str, RecordType) -> Reply, is_udp: bool) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).unwrap();
    let query = question.queries[0].clone();
    let (name, kind) = (query.name().clone(), query.query_type());
    let text = name.to_lowercase().to_string();
    let mut answer = question.into_response();
    let records = |of: &Name, addresses: &[IpAddr], ttl: u32| {
        let all = addresses.iter().map(|address| RData::from(*address));
        let asked = all.filter(|data| data.record_type() == kind);
        asked.map(|data| Record::from_rdata(of.clone(), ttl, data)).collect::<Vec<_>>()
    };
    match reply(text.trim_end_matches('.'), kind) {
        Reply::Silence => return None,
        Reply::Failure(code) => answer.metadata.response_code = code,
        Reply::NoName(ttl) => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, ttl);
            answer.insert_authorities(vec![Record::from_rdata(Name::root(), ttl, RData::SOA(soa))]);
        }
        Reply::Alias(alias, alias_ttl, addresses, ttl) => {
            let alias = Name::from_ascii(alias).unwrap();
            let first = Record::from_rdata(name, alias_ttl, RData::CNAME(CNAME(alias.clone())));
            answer.insert_answers([vec![first], records(&alias, &addresses, ttl)].concat());
        }
        Reply::Truncated(..) if is_udp => answer.metadata.truncation = true,
        Reply::Addresses(addresses, ttl) | Reply::Truncated(addresses, ttl) => {
            answer.insert_answers(records(&name, &addresses, ttl));
        }
    }
    Some(answer.to_vec().unwrap())
}
