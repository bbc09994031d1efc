//! Bodies in chunks: where each one begins and ends.
//!
//! ```text
//!   size ──▶ (extension) ──▶ data ──▶ size … 0 ──▶ (trailers) ──▶ over
//! ```
//!
//! Source: RFC 9112 section 7.1.

use std::fmt;

use crate::limits::API_CHUNK_WASTE_MAX;

/// Digits of the largest size: it fits 64 bits.
const SIZE_DIGITS_MAX: u32 = 16;

/// Reads a body in chunks, piece by piece.
#[derive(Debug, Default)]
pub struct Chunks {
    await_: Await,
    /// Bytes of this chunk that are to come; above 0 where data are awaited.
    left: u64,
    /// Bytes of extensions and trailers so far.
    waste: usize,
}

/// What comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Await {
    #[default]
    FirstDigit,
    /// Digits, an extension or the end of the line; so many digits have come.
    Digit(u32),
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// A trailer, or the end of it all.
    Trailer,
    TrailerRest,
    TrailerLf,
    LastLf,
    Nothing,
}

/// The body is not in chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunksError;

impl Chunks {
    /// Reads from the front of `input`; returns how many bytes belong to the body, and those data
    /// that are the last of them.
    ///
    /// To be called again with the rest, until nothing is left of `input` or the body is over.
    pub fn decode<'i>(&mut self, input: &'i [u8]) -> Result<(usize, &'i [u8]), ChunksError> {
        for (index, byte) in input.iter().enumerate() {
            match self.await_ {
                Await::Nothing => return Ok((index, &[])),
                Await::Data => {
                    let rest = &input[index..];
                    let size = usize::try_from(self.left).unwrap_or(usize::MAX);
                    let data = &rest[..rest.len().min(size)];
                    self.left -= u64::try_from(data.len()).unwrap_or(self.left);
                    if self.left == 0 {
                        self.await_ = Await::DataCr;
                    }
                    return Ok((index + data.len(), data));
                }
                await_ => self.await_ = self.step(await_, *byte)?,
            }
        }
        Ok((input.len(), &[]))
    }

    /// Returns whether the body has ended.
    pub fn is_over(&self) -> bool {
        self.await_ == Await::Nothing
    }

    /// Returns how many bytes of the present chunk are to come, as far as its size has been read.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Returns what is awaited behind `byte`, which is none of the data.
    fn step(&mut self, await_: Await, byte: u8) -> Result<Await, ChunksError> {
        let digit = char::from(byte).to_digit(16).map(u64::from);
        Ok(match (await_, byte) {
            (Await::FirstDigit, _) => {
                self.left = digit.ok_or(ChunksError)?;
                Await::Digit(1)
            }
            (Await::Digit(count), _) if digit.is_some() => {
                if count >= SIZE_DIGITS_MAX {
                    return Err(ChunksError);
                }
                self.left = self.left << 4 | digit.ok_or(ChunksError)?;
                Await::Digit(count + 1)
            }
            (Await::Digit(_), b';' | b' ' | b'\t') => self.waste(Await::Extension)?,
            (Await::Digit(_) | Await::Extension, b'\r') => Await::SizeLf,
            (Await::Extension, _) if is_text(byte) => self.waste(Await::Extension)?,
            (Await::SizeLf, b'\n') if self.left == 0 => Await::Trailer,
            (Await::SizeLf, b'\n') => Await::Data,
            (Await::DataCr, b'\r') => Await::DataLf,
            (Await::DataLf, b'\n') => Await::FirstDigit,
            (Await::Trailer, b'\r') => Await::LastLf,
            (Await::TrailerRest, b'\r') => Await::TrailerLf,
            (Await::Trailer | Await::TrailerRest, _) if is_text(byte) => {
                self.waste(Await::TrailerRest)?
            }
            (Await::TrailerLf, b'\n') => Await::Trailer,
            (Await::LastLf, b'\n') => Await::Nothing,
            _ => return Err(ChunksError),
        })
    }

    /// Counts a byte that says nothing.
    fn waste(&mut self, await_: Await) -> Result<Await, ChunksError> {
        self.waste += 1;
        if self.waste > API_CHUNK_WASTE_MAX {
            return Err(ChunksError);
        }
        Ok(await_)
    }
}

/// Returns whether a line may have `byte` inside.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

impl fmt::Display for ChunksError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the body is not in chunks")
    }
}

impl std::error::Error for ChunksError {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `input`, given in pieces of `piece_size`; returns the data and what is behind.
    fn decode(input: &[u8], piece_size: usize) -> Result<(Vec<u8>, Option<Vec<u8>>), ChunksError> {
        let mut chunks = Chunks::default();
        let mut data = Vec::new();
        let mut consumed = 0;
        for piece in input.chunks(piece_size) {
            let mut rest = piece;
            while !rest.is_empty() && !chunks.is_over() {
                let (size, decoded) = chunks.decode(rest)?;
                assert!(decoded.len() <= size && size <= rest.len());
                data.extend_from_slice(decoded);
                consumed += size;
                rest = &rest[size..];
            }
        }
        let behind = chunks.is_over().then(|| input[consumed..].to_vec());
        Ok((data, behind))
    }

    #[test]
    fn chunks_are_joined_however_they_come() {
        let body =
            b"5\r\nhello\r\n00001;a=\"b c\"\r\n \r\nA \r\n0123456789\r\n0\r\nX: y\r\n\r\nGET";
        for piece_size in 1..body.len() {
            let (data, behind) = decode(body, piece_size).unwrap();
            assert_eq!(data, b"hello 0123456789");
            assert_eq!(behind.as_deref(), Some(&b"GET"[..]));
        }
    }

    #[test]
    fn what_is_not_in_chunks_is_refused() {
        for body in [
            &b"\r\n"[..],
            b"g\r\n",
            b"-1\r\n",
            b"0x1\r\n",
            b"1\nx",
            b"1\r\nxx",
            b"1\r\nx\n",
            b"1;\0\r\n",
            b"1;\n",
            b"0\r\nA: b\n",
            b"0\r\n\rx",
            b"11111111111111111\r\n",
        ] {
            assert_eq!(decode(body, body.len()), Err(ChunksError), "{body:?}");
        }
        let largest = b"fffffffffffffffe\r\nx";
        assert_eq!(decode(largest, 3), Ok((b"x".to_vec(), None)));
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let extended = |size: usize| format!("0;{}\r\n\r\n", "x".repeat(size - 1));
        let most = extended(API_CHUNK_WASTE_MAX);
        assert_eq!(decode(most.as_bytes(), 100), Ok((vec![], Some(vec![]))));
        let more = extended(API_CHUNK_WASTE_MAX + 1);
        assert_eq!(decode(more.as_bytes(), 100), Err(ChunksError));
        let trailers = format!("0\r\n{}", "a: b\r\n".repeat(API_CHUNK_WASTE_MAX / 4 + 1));
        assert_eq!(decode(trailers.as_bytes(), 100), Err(ChunksError));
        let many = "1;ext\r\nx\r\n".repeat(API_CHUNK_WASTE_MAX / 4 + 1);
        assert_eq!(decode(many.as_bytes(), 100), Err(ChunksError));
    }
}
