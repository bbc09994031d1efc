//! Which lists of fields are requests, responses and trailers, and which are malformed.
//!
//! Source: RFC 9113 section 8.

use super::hpack::Field;

/// What a list of fields says of the stream that it heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// Size of the body (bytes), where it is said.
    pub(super) body_size: Option<u64>,
    /// A response that another one will follow.
    pub(super) is_interim: bool,
}

/// A list of fields against the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Looks a request through. RFC 9113 section 8.3.1.
pub(super) fn check_request(fields: &[Field]) -> Result<Head, Malformed> {
    let [mut method, mut scheme, mut authority, mut path] = [None; 4];
    let regular = take_pseudo(fields, |name, value| {
        let place = match name {
            b":method" => &mut method,
            b":scheme" => &mut scheme,
            b":authority" => &mut authority,
            b":path" => &mut path,
            _ => return Err(Malformed),
        };
        set_once(place, value)
    })?;
    let method: &[u8] = method
        .filter(|method| !method.is_empty())
        .ok_or(Malformed)?;
    let is_complete = if method == b"CONNECT" {
        // RFC 9113 section 8.5.
        scheme.is_none() && path.is_none() && authority.is_some_and(|name| !name.is_empty())
    } else {
        scheme.is_some_and(|scheme| !scheme.is_empty()) && path.is_some_and(|path| !path.is_empty())
    };
    if !is_complete {
        return Err(Malformed);
    }
    let body_size = check_regular(regular)?;
    Ok(Head {
        body_size,
        is_interim: false,
    })
}

/// Looks a response through. RFC 9113 section 8.3.2.
pub(super) fn check_response(fields: &[Field]) -> Result<Head, Malformed> {
    let mut status = None;
    let regular = take_pseudo(fields, |name, value| match name {
        b":status" => set_once(&mut status, value),
        _ => Err(Malformed),
    })?;
    let &[a, b, c] = status.ok_or(Malformed)? else {
        return Err(Malformed);
    };
    if ![a, b, c].iter().all(u8::is_ascii_digit) {
        return Err(Malformed);
    }
    let body_size = check_regular(regular)?;
    // These have no body, whatever size they tell of. RFC 9110 section 8.6.
    let has_no_body = matches!(
        [a, b, c],
        [b'1', _, _] | [b'2', b'0', b'4'] | [b'3', b'0', b'4']
    );
    Ok(Head {
        body_size: body_size.filter(|_| !has_no_body),
        is_interim: a == b'1',
    })
}

/// Looks trailers through. RFC 9113 section 8.1.
pub(super) fn check_trailers(fields: &[Field]) -> Result<(), Malformed> {
    check_regular(fields).map(|_| ())
}

/// Hands the pseudo-fields at the start to `take` and returns the fields behind them.
fn take_pseudo<'a>(
    fields: &'a [Field],
    mut take: impl FnMut(&'a [u8], &'a [u8]) -> Result<(), Malformed>,
) -> Result<&'a [Field], Malformed> {
    let is_regular = |field: &Field| field.name.first() != Some(&b':');
    let count = fields.iter().position(is_regular).unwrap_or(fields.len());
    let (pseudo, regular) = fields.split_at(count);
    for field in pseudo {
        check_value(&field.value)?;
        take(&field.name, &field.value)?;
    }
    Ok(regular)
}

fn set_once<'a>(place: &mut Option<&'a [u8]>, value: &'a [u8]) -> Result<(), Malformed> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Malformed),
    }
}

/// Checks fields that are no pseudo-fields; returns the size of the body where it is said.
fn check_regular(fields: &[Field]) -> Result<Option<u64>, Malformed> {
    let mut body_size = None;
    for field in fields {
        check_name(&field.name)?;
        check_value(&field.value)?;
        match &field.name[..] {
            // What belongs to one connection of HTTP/1.1 only. RFC 9113 section 8.2.2.
            b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding"
            | b"upgrade" => return Err(Malformed),
            b"te" if field.value != b"trailers" => return Err(Malformed),
            b"content-length" => {
                let size = parse_size(&field.value)?;
                if body_size.replace(size).is_some_and(|other| other != size) {
                    return Err(Malformed);
                }
            }
            _ => {}
        }
    }
    Ok(body_size)
}

/// RFC 9113 section 8.2.1; a colon is for pseudo-fields, which are looked at elsewhere.
fn check_name(name: &[u8]) -> Result<(), Malformed> {
    let is_bad = |octet: &u8| matches!(octet, 0..=0x20 | b'A'..=b'Z' | b':' | 0x7f..=0xff);
    if name.is_empty() || name.iter().any(is_bad) {
        return Err(Malformed);
    }
    Ok(())
}

/// RFC 9113 section 8.2.1.
fn check_value(value: &[u8]) -> Result<(), Malformed> {
    let is_space = |octet: Option<&u8>| matches!(octet, Some(b' ' | b'\t'));
    let is_bad = |octet: &u8| matches!(octet, 0 | b'\n' | b'\r');
    if is_space(value.first()) || is_space(value.last()) || value.iter().any(is_bad) {
        return Err(Malformed);
    }
    Ok(())
}

fn parse_size(value: &[u8]) -> Result<u64, Malformed> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Malformed);
    }
    let text = str::from_utf8(value).map_err(|_| Malformed)?;
    text.parse().map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&str, &str)]) -> Vec<Field> {
        let field = |&(name, value): &(&str, &str)| Field {
            name: name.as_bytes().to_vec(),
            value: value.as_bytes().to_vec(),
        };
        list.iter().map(field).collect()
    }

    const REQUEST: [(&str, &str); 4] = [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", "/stream"),
        (":authority", "none"),
    ];

    fn request_with(more: &[(&str, &str)]) -> Result<Head, Malformed> {
        check_request(&fields(&[&REQUEST, more].concat()))
    }

    #[test]
    fn a_request_has_each_pseudo_field_once_and_first() {
        assert!(request_with(&[]).is_ok());
        for index in 0..3 {
            let mut list = REQUEST.to_vec();
            list.remove(index);
            assert!(check_request(&fields(&list)).is_err(), "without {index}");
            let mut list = REQUEST.to_vec();
            list.push(REQUEST[index]);
            assert!(check_request(&fields(&list)).is_err(), "twice {index}");
            let mut list = REQUEST.to_vec();
            list[index].1 = "";
            assert!(check_request(&fields(&list)).is_err(), "empty {index}");
        }
        assert!(request_with(&[(":protocol", "websocket")]).is_err());
        assert!(request_with(&[(":status", "200")]).is_err());
        assert!(request_with(&[("a", "b"), (":path", "/")]).is_err());
        assert!(check_request(&fields(&REQUEST[..3])).is_ok());
    }

    #[test]
    fn connect_has_an_authority_and_no_path() {
        let connect = [(":method", "CONNECT"), (":authority", "a:1")];
        assert!(check_request(&fields(&connect)).is_ok());
        assert!(check_request(&fields(&connect[..1])).is_err());
        let list = [connect[0], connect[1], (":path", "/")];
        assert!(check_request(&fields(&list)).is_err());
    }

    #[test]
    fn fields_of_one_connection_are_refused() {
        for name in [
            "connection",
            "keep-alive",
            "proxy-connection",
            "transfer-encoding",
            "upgrade",
        ] {
            assert!(request_with(&[(name, "x")]).is_err(), "{name}");
        }
        assert!(request_with(&[("te", "trailers")]).is_ok());
        assert!(request_with(&[("te", "gzip")]).is_err());
    }

    #[test]
    fn names_and_values_have_no_odd_octets() {
        for name in ["", "A", "a b", "a:", "a\u{7f}", "é", "a\0"] {
            assert!(request_with(&[(name, "x")]).is_err(), "{name:?}");
        }
        for value in [" a", "a ", "\ta", "a\r", "a\nb", "a\0"] {
            assert!(request_with(&[("a", value)]).is_err(), "{value:?}");
        }
        for value in ["", "a b", "é", "a\tb"] {
            assert!(request_with(&[("a", value)]).is_ok(), "{value:?}");
        }
    }

    #[test]
    fn the_size_of_a_body_is_a_number_and_said_once() {
        let size = |list: &[(&str, &str)]| request_with(list).map(|head| head.body_size);
        assert_eq!(size(&[]), Ok(None));
        assert_eq!(size(&[("content-length", "12")]), Ok(Some(12)));
        assert_eq!(
            size(&[("content-length", "12"), ("content-length", "12")]),
            Ok(Some(12))
        );
        assert!(size(&[("content-length", "12"), ("content-length", "13")]).is_err());
        for text in ["", "+1", "-1", "1x", "99999999999999999999"] {
            assert!(size(&[("content-length", text)]).is_err(), "{text}");
        }
    }

    #[test]
    fn a_response_has_a_status_of_three_digits() {
        let check = |list: &[(&str, &str)]| check_response(&fields(list));
        assert_eq!(check(&[(":status", "200")]), Ok(Head::default()));
        let interim = Head {
            body_size: None,
            is_interim: true,
        };
        assert_eq!(check(&[(":status", "103")]), Ok(interim));
        assert_eq!(
            check(&[(":status", "304"), ("content-length", "7")]),
            Ok(Head::default())
        );
        for status in ["", "20", "2000", "2x0"] {
            assert!(check(&[(":status", status)]).is_err());
        }
        assert!(check(&[]).is_err());
        assert!(check(&[(":status", "200"), (":status", "200")]).is_err());
        assert!(check(&[(":status", "200"), (":path", "/")]).is_err());
    }

    #[test]
    fn trailers_have_no_pseudo_fields() {
        assert!(check_trailers(&fields(&[("grpc-status", "0")])).is_ok());
        assert!(check_trailers(&fields(&[(":status", "200")])).is_err());
    }
}
