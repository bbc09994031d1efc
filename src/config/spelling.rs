//! What was likely meant where a name is unknown.

/// Longest name that is compared (characters): nothing longer is near any name we know.
const COMPARED_LENGTH_MAX: usize = 12;

/// The known name nearest to `name`, if one is near: one slip, or two in a name of five or more.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if name.chars().count() > COMPARED_LENGTH_MAX {
        return None;
    }
    let name = name.to_ascii_lowercase();
    known
        .map(|other| (edit_distance(&name, other), other))
        .filter(|(distance, other)| *distance <= if other.len() < 5 { 1 } else { 2 })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, other)| other)
}

/// Fewest insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            if i == 0 || j == 0 {
                rows[i][j] = i + j;
                continue;
            }
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut fewest = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                fewest = fewest.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = fewest;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 5] = ["tls", "type", "block", "server", "slot"];

    #[test]
    fn a_slip_is_recognised() {
        for (name, meant) in [
            ("tsl", "tls"),
            ("tl", "tls"),
            ("TLS", "tls"),
            ("typ", "type"),
            ("blokc", "block"),
            ("severs", "server"),
            ("slots", "slot"),
        ] {
            assert_eq!(nearest(name, NAMES.into_iter()), Some(meant), "{name}");
        }
    }

    #[test]
    fn far_names_are_not_guessed() {
        for name in ["", "foo", "t", "http", "serverserverserver", "äöüß"] {
            assert_eq!(nearest(name, NAMES.into_iter()), None, "{name}");
        }
    }

    #[test]
    fn distances_count_slips() {
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", "abc"), 0);
        assert_eq!(edit_distance("abcd", "acbd"), 1);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }
}
