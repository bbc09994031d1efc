//! Clients of the API: requests over one connection, and event streams.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ChildStdout;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::{Outcome, PATIENCE};

/// Words before the address in the log.
const LISTENING: &str = "API listening on tcp ";

/// Returns the address that the master says it listens on; what it says later is thrown away.
pub fn read_address(output: ChildStdout, is_over: &Arc<AtomicBool>) -> Outcome<SocketAddr> {
    let mut lines = BufReader::new(output).lines();
    let address = loop {
        let line = lines.next().ok_or("the master has ended")??;
        if let Some((_, rest)) = line.split_once(LISTENING) {
            let (address, _) = rest.split_once(": ").ok_or("no address")?;
            break address.parse()?;
        }
    };
    let is_over = Arc::clone(is_over);
    thread::spawn(move || {
        for _ in lines {
            if is_over.load(Ordering::Relaxed) {
                return;
            }
        }
    });
    Ok(address)
}

/// A connection for one request after another.
pub struct Client {
    reader: BufReader<TcpStream>,
    key: String,
}

impl Client {
    pub fn connect(address: SocketAddr, key: &str) -> Outcome<Self> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            reader: BufReader::new(socket),
            key: key.to_owned(),
        })
    }

    /// Returns status and body of the answer.
    pub fn request(&mut self, method: &str, path: &str, body: &str) -> Outcome<(u16, Vec<u8>)> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: bench\r\nX-API-Key: {}\r\nContent-Length: {}\r\n\r\n{body}",
            self.key,
            body.len()
        );
        self.reader.get_mut().write_all(request.as_bytes())?;
        let (status, fields) = read_head(&mut self.reader)?;
        let mut size = 0;
        for (name, value) in fields {
            if name == "content-length" {
                size = value.parse()?;
            }
        }
        let mut body = vec![0; size];
        self.reader.read_exact(&mut body)?;
        Ok((status, body))
    }

    /// The same; another status is an error.
    pub fn expect(
        &mut self,
        wanted: u16,
        method: &str,
        path: &str,
        body: &str,
    ) -> Outcome<Vec<u8>> {
        let (status, answer) = self.request(method, path, body)?;
        if status != wanted {
            let text = String::from_utf8_lossy(&answer);
            return Err(format!("{method} {path} was answered {status}: {text}").into());
        }
        Ok(answer)
    }

    pub fn change_alias(&mut self, id: &str, alias: &str) -> Outcome<()> {
        let body = format!(r#"{{"alias":"{alias}"}}"#);
        self.expect(200, "PATCH", &format!("/api/v1/instances/{id}"), &body)
            .map(drop)
    }
}

/// An event stream.
pub struct Events {
    reader: BufReader<TcpStream>,
}

impl Events {
    pub fn open(address: SocketAddr, key: &str) -> Outcome<Self> {
        let mut socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let request =
            format!("GET /api/v1/events HTTP/1.1\r\nHost: bench\r\nX-API-Key: {key}\r\n\r\n");
        socket.write_all(request.as_bytes())?;
        let mut reader = BufReader::new(socket);
        match read_head(&mut reader)? {
            (200, _) => Ok(Self { reader }),
            (status, _) => Err(format!("events were answered {status}").into()),
        }
    }

    /// Returns the next event. Chunks end with lines, so their sizes are lines of their own.
    pub fn next(&mut self) -> Outcome<Value> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.reader.read_line(&mut line)? == 0 {
                return Err("the event stream has ended".into());
            }
            if let Some(data) = line.strip_prefix("data: ") {
                return Ok(serde_json::from_str(data)?);
            }
        }
    }

    /// Reads what has been waiting; returns whether the stream ends there.
    pub fn has_ended(mut self) -> bool {
        let timeout = Duration::from_secs(2);
        let set = self.reader.get_ref().set_read_timeout(Some(timeout));
        let mut buffer = [0; 64 * 1024];
        set.is_ok()
            && loop {
                match self.reader.read(&mut buffer) {
                    Ok(0) => break true,
                    Ok(_) => {}
                    Err(error) => {
                        break error.kind() == std::io::ErrorKind::ConnectionReset;
                    }
                }
            }
    }
}

/// Reads status and fields, their names in small letters.
fn read_head(reader: &mut impl BufRead) -> Outcome<(u16, Vec<(String, String)>)> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).ok_or("no answer")?.parse()?;
    let mut fields = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            return Ok((status, fields));
        };
        fields.push((name.to_ascii_lowercase(), value.to_owned()));
    }
}
