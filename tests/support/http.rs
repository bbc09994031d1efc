//! A client of HTTP/1.1 that does what it is told, and a reader of event streams.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use super::peer::Stream;

/// Longest line of a head or of an event (bytes); more is an answer without end.
const LINE_SIZE_MAX: u64 = 1 << 20;

/// One field of a head.
pub type Field<'a> = (&'a str, &'a str);

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Such as `HTTP/1.1`.
    pub version: String,
    /// Status code.
    pub status: u16,
    /// The fields of its head, in order, as they were spelled.
    pub fields: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a field, whose name may be spelled in any case; panics if it stands twice.
    #[track_caller]
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut found = self
            .fields
            .iter()
            .filter(|(other, _)| other.eq_ignore_ascii_case(name));
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "field {name} stands twice");
        value
    }

    /// The body as text.
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The body as JSON; null where there is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        if self.body.is_empty() {
            return Value::Null;
        }
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// The text of an error.
    #[track_caller]
    pub fn error(&self) -> String {
        let body = self.json();
        let text = body["error"].as_str();
        text.unwrap_or_else(|| panic!("no error in {body}"))
            .to_owned()
    }

    /// Whether the connection ends after it.
    #[track_caller]
    pub fn is_last(&self) -> bool {
        let wish = self.field("Connection").map(str::to_ascii_lowercase);
        match wish.as_deref() {
            Some("close") => true,
            Some("keep-alive") => false,
            _ => self.version == "HTTP/1.0",
        }
    }
}

/// One connection to a server, with the deadline of the tests on every read and write.
pub struct Connection {
    stream: BufReader<Stream>,
}

impl Connection {
    /// Connects in plain text.
    pub fn dial(address: SocketAddr) -> io::Result<Self> {
        Self::dial_with(address, false)
    }

    /// Connects, by TLS if `tls`; any certificate will do.
    pub fn dial_with(address: SocketAddr, tls: bool) -> io::Result<Self> {
        Stream::dial(address, tls).map(Self::over)
    }

    /// Over a stream that is there already.
    pub fn over(stream: Stream) -> Self {
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// The stream below.
    pub fn stream(&self) -> &Stream {
        self.stream.get_ref()
    }

    /// Sends whatever it is given.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let stream = self.stream.get_mut();
        stream.write_all(bytes)?;
        stream.flush()
    }

    /// Sends a request as it should be.
    pub fn send(
        &mut self,
        method: &str,
        path: &str,
        fields: &[Field<'_>],
        body: Option<&[u8]>,
    ) -> io::Result<()> {
        self.send_raw(&encode(method, path, fields, body))
    }

    /// Reads the answer to a request with `method`, past any interim one.
    pub fn receive(&mut self, method: &str) -> io::Result<Answer> {
        let mut answer = loop {
            let answer = self.receive_head()?;
            if answer.status >= 200 {
                break answer;
            }
        };
        let has_body = method != "HEAD" && !matches!(answer.status, 204 | 304);
        if !has_body {
            return Ok(answer);
        }
        let transfer = answer.field("Transfer-Encoding").map(str::to_owned);
        let length = answer.field("Content-Length").map(str::to_owned);
        match (transfer.as_deref(), length) {
            (Some("chunked"), None) => {
                Chunks::new(&mut self.stream).read_to_end(&mut answer.body)?;
            }
            (None, Some(length)) => {
                answer.body = vec![0; length.parse().map_err(|_| wrong("length", &length))?];
                self.stream.read_exact(&mut answer.body)?;
            }
            (None, None) if answer.is_last() => {
                self.stream.read_to_end(&mut answer.body)?;
            }
            (transfer, length) => {
                return Err(wrong(
                    "end of the body",
                    &format!("{transfer:?}, {length:?}"),
                ));
            }
        }
        Ok(answer)
    }

    /// Sends a request and reads its answer.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        fields: &[Field<'_>],
        body: Option<&[u8]>,
    ) -> io::Result<Answer> {
        self.send(method, path, fields, body)?;
        self.receive(method)
    }

    /// Reads a head: an answer without a body yet.
    pub fn receive_head(&mut self) -> io::Result<Answer> {
        let first = read_line(&mut self.stream)?;
        let mut parts = first.splitn(3, ' ');
        let version = parts.next().unwrap_or_default().to_owned();
        let status = parts.next().and_then(|status| status.parse().ok());
        let status = match status {
            Some(status) if version.starts_with("HTTP/1.") => status,
            _ => return Err(wrong("status line", &first)),
        };
        let mut fields = Vec::new();
        loop {
            let line = read_line(&mut self.stream)?;
            if line.is_empty() {
                return Ok(Answer {
                    version,
                    status,
                    fields,
                    body: Vec::new(),
                });
            }
            let (name, value) = line.split_once(':').ok_or_else(|| wrong("field", &line))?;
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// All that still comes until the connection ends, in whatever way but that of a deadline.
    #[track_caller]
    pub fn read_until_end(&mut self) -> Vec<u8> {
        let mut bytes = self.stream.buffer().to_vec();
        self.stream.consume(bytes.len());
        bytes.extend(self.stream.get_mut().read_until_end());
        bytes
    }

    /// Gives up waiting for a read after `wait`; `None` is for ever.
    pub fn set_patience(&self, wait: Option<Duration>) {
        self.stream().socket().set_read_timeout(wait).unwrap();
    }

    /// Reads the events of an answer whose head has been read.
    pub fn into_events(self) -> EventReader {
        EventReader {
            lines: BufReader::new(Chunks::new(self.stream)),
        }
    }
}

/// The bytes of a request.
pub fn encode(method: &str, path: &str, fields: &[Field<'_>], body: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\n");
    let is_named = |name: &str| {
        fields
            .iter()
            .any(|(other, _)| other.eq_ignore_ascii_case(name))
    };
    if !is_named("Host") {
        bytes += "Host: nodepass.test\r\n";
    }
    for (name, value) in fields {
        bytes += &format!("{name}: {value}\r\n");
    }
    if let Some(body) = body {
        if !is_named("Content-Type") {
            bytes += "Content-Type: application/json\r\n";
        }
        if !is_named("Content-Length") && !is_named("Transfer-Encoding") {
            bytes += &format!("Content-Length: {}\r\n", body.len());
        }
    }
    bytes += "\r\n";
    [bytes.as_bytes(), body.unwrap_or_default()].concat()
}

/// Sends `bytes` on a connection of its own; all that comes back until it ends.
#[track_caller]
pub fn raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut connection = Connection::dial(address).unwrap();
    // A server may have enough before it has read all.
    let _ = connection.send_raw(bytes);
    connection.read_until_end()
}

/// The body of a chunked answer.
struct Chunks<R> {
    source: R,
    /// Bytes left of this chunk; `None` after the last one.
    left: Option<u64>,
    is_first: bool,
}

impl<R: BufRead> Chunks<R> {
    fn new(source: R) -> Self {
        Self {
            source,
            left: Some(0),
            is_first: true,
        }
    }

    /// Goes to the next chunk with something in it, or to the end.
    fn advance(&mut self) -> io::Result<()> {
        if !self.is_first {
            self.expect_blank()?;
        }
        self.is_first = false;
        let line = read_line(&mut self.source)?;
        let (size, _) = line.split_once(';').unwrap_or((&line, ""));
        let size = u64::from_str_radix(size, 16).map_err(|_| wrong("chunk size", &line))?;
        if size > 0 {
            self.left = Some(size);
            return Ok(());
        }
        self.left = None;
        self.expect_blank()
    }

    fn expect_blank(&mut self) -> io::Result<()> {
        match read_line(&mut self.source)? {
            line if line.is_empty() => Ok(()),
            line => Err(wrong("end of a chunk", &line)),
        }
    }
}

impl<R: BufRead> Read for Chunks<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == Some(0) {
            self.advance()?;
        }
        let Some(left) = self.left else {
            return Ok(0);
        };
        let count = (&mut self.source).take(left).read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.left = Some(left - u64::try_from(count).unwrap());
        Ok(count)
    }
}

/// What an event stream is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A line that says how long to wait before coming back (milliseconds).
    Retry(u64),
    /// A line that says nothing.
    Comment(String),
    /// An event.
    Event {
        /// Its name.
        name: String,
        /// Its lines of data.
        data: String,
    },
}

/// Reads the items of an event stream, one after another.
pub struct EventReader {
    lines: BufReader<Chunks<BufReader<Stream>>>,
}

impl EventReader {
    /// The next item; `None` at the end of the stream.
    ///
    /// Errors: the connection fails or ends in the middle, or what comes is no event stream.
    pub fn next_item(&mut self) -> io::Result<Option<Item>> {
        let mut name = None;
        let mut data: Option<String> = None;
        loop {
            let mut line = String::new();
            if (&mut self.lines).take(LINE_SIZE_MAX).read_line(&mut line)? == 0 {
                return match (name, data) {
                    (None, None) => Ok(None),
                    _ => Err(ErrorKind::UnexpectedEof.into()),
                };
            }
            let line = line
                .strip_suffix('\n')
                .ok_or_else(|| wrong("line", &line))?;
            if line.is_empty() {
                match (name.take(), data.take()) {
                    (Some(name), Some(data)) => return Ok(Some(Item::Event { name, data })),
                    (None, None) => continue,
                    half => return Err(wrong("event", &format!("{half:?}"))),
                }
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" => return Ok(Some(Item::Comment(value.to_owned()))),
                "retry" => {
                    let wait = value.parse().map_err(|_| wrong("retry", value))?;
                    return Ok(Some(Item::Retry(wait)));
                }
                "event" => name = Some(value.to_owned()),
                "data" => match &mut data {
                    None => data = Some(value.to_owned()),
                    Some(data) => *data += &format!("\n{value}"),
                },
                _ => return Err(wrong("line", line)),
            }
        }
    }
}

/// Reads one line of a head, without its end.
fn read_line(source: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    source.take(LINE_SIZE_MAX).read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(text) => Ok(text.to_owned()),
        None if line.is_empty() => Err(ErrorKind::UnexpectedEof.into()),
        None => Err(wrong("line", &line)),
    }
}

fn wrong(what: &str, found: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("not a {what}: {found:?}"))
}
