//! Percent-encoding (RFC 3986 section 2.1).

/// The bytes that `text` stands for; `None` when a `%` has no two hex digits behind it.
pub(crate) fn decode_percent(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (&[high, low], after) = rest.split_first_chunk()?;
        bytes.push(hex_digit(high)? << 4 | hex_digit(low)?);
        rest = after;
    }
    Some(bytes)
}

/// The value as a query carries it. What no reader of a query can mistake stays legible.
pub(super) fn encode_query(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => text.push(byte.into()),
            b'-' | b'_' | b'.' | b'~' | b'/' | b':' | b',' => text.push(byte.into()),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_any_byte() {
        assert_eq!(
            decode_percent("a%40b%2fC%00%Ff+").as_deref(),
            Some(&b"a@b/C\0\xff+"[..])
        );
        assert_eq!(decode_percent("").as_deref(), Some(&b""[..]));
    }

    #[test]
    fn refuses_half_an_escape() {
        for text in ["%", "%4", "a%4", "%zz", "%4g", "%%40", "%+1"] {
            assert_eq!(decode_percent(text), None, "{text}");
        }
    }

    #[test]
    fn encodes_what_a_query_would_change() {
        assert_eq!(
            encode_query("/etc/a b&c=d+e%.pem"),
            "/etc/a%20b%26c%3Dd%2Be%25.pem"
        );
        assert_eq!(encode_query("2µs"), "2%C2%B5s");
        assert_eq!(encode_query("1.1.1.1,[::1]:5353"), "1.1.1.1,%5B::1%5D:5353");
        let every: String = (0..=255_u8).map(char::from).collect();
        assert_eq!(
            decode_percent(&encode_query(&every)),
            Some(every.into_bytes())
        );
    }
}
