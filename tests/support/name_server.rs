//! A name server with hand-made answers, to be asked instead of the system's.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::servers::UdpServer;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const HEADER_SIZE: usize = 12;

/// What it says to a name it does not know.
#[derive(Debug, Clone, Copy)]
pub enum Unknown {
    /// The name does not exist.
    Missing,
    /// The server has failed.
    Failure,
    /// Nothing at all.
    Silence,
}

/// A running name server.
pub struct NameServer {
    server: UdpServer,
    queries_count: Arc<AtomicUsize>,
    names: Arc<Mutex<HashMap<String, Vec<IpAddr>>>>,
}

impl NameServer {
    /// Starts at a free port; knows `names`.
    pub fn start(names: &[(&str, IpAddr)], unknown: Unknown) -> Self {
        let queries_count = Arc::new(AtomicUsize::new(0));
        let mut table: HashMap<String, Vec<IpAddr>> = HashMap::new();
        for (name, address) in names {
            table.entry((*name).to_owned()).or_default().push(*address);
        }
        let names = Arc::new(Mutex::new(table));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = UdpServer::start_at(address, {
            let (queries_count, names) = (Arc::clone(&queries_count), Arc::clone(&names));
            move |socket, query, sender| {
                queries_count.fetch_add(1, Ordering::SeqCst);
                if let Some(answer) = answer(query, &names.lock().unwrap(), unknown) {
                    let _ = socket.send_to(&answer, sender);
                }
            }
        });
        Self {
            server,
            queries_count,
            names,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Queries received so far, answered or not.
    pub fn queries_count(&self) -> usize {
        self.queries_count.load(Ordering::SeqCst)
    }

    /// Adds a name from now on.
    pub fn add(&self, name: &str, address: IpAddr) {
        self.names
            .lock()
            .unwrap()
            .entry(name.to_owned())
            .or_default()
            .push(address);
    }
}

/// Answers one query; `None` where nothing is to be said.  Source: RFC 1035 section 4.
fn answer(query: &[u8], names: &HashMap<String, Vec<IpAddr>>, unknown: Unknown) -> Option<Vec<u8>> {
    let (name, question_end) = question_name(query)?;
    let kind = u16::from_be_bytes(*query.get(question_end..)?.first_chunk()?);
    let question = query.get(HEADER_SIZE..question_end + 4)?;
    let known = names.get(&name);
    let code = match (known, unknown) {
        (Some(_), _) => 0,
        (None, Unknown::Missing) => 3,
        (None, Unknown::Failure) => 2,
        (None, Unknown::Silence) => return None,
    };
    let mut records = Vec::new();
    let mut records_count: u16 = 0;
    for address in known.into_iter().flatten() {
        let data = match (address, kind) {
            (IpAddr::V4(v4), TYPE_A) => v4.octets().to_vec(),
            (IpAddr::V6(v6), TYPE_AAAA) => v6.octets().to_vec(),
            _ => continue,
        };
        // The name by a pointer to the question, class IN, one hour.
        records.extend([0xc0, 0x0c]);
        records.extend(kind.to_be_bytes());
        records.extend([0, 1, 0, 0, 0x0e, 0x10, 0]);
        records.push(u8::try_from(data.len()).unwrap());
        records.extend(data);
        records_count += 1;
    }
    let mut reply = query[..2].to_vec();
    reply.extend([0x81, 0x80 | code, 0, 1]);
    reply.extend(records_count.to_be_bytes());
    reply.extend([0, 0, 0, 0]);
    reply.extend(question);
    reply.extend(records);
    Some(reply)
}

/// The name asked for, lower case, without its final dot; and where its type field begins.
fn question_name(query: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = HEADER_SIZE;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        let label = query.get(at..at + length)?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += length;
    }
}
