//! The UDP sessions of a loop, each known by a token.

use std::convert::Infallible;

/// A session in a table: its place, and which use of that place it is. The first use is 1, so
/// that no name of a session looks like one of the other members of an epoll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    place: u32,
    use_count: u32,
}

/// Which of the descriptors of a session an epoll tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The socket to its target.
    Target,
    /// Its pool connection.
    Stream,
}

/// Most uses of a place that are told apart: the highest bit of a name is the side.
const USE_COUNT_MASK: u32 = u32::MAX >> 1;
const STREAM_BIT: u64 = 1 << 63;

impl Token {
    /// Returns the name of one of the descriptors of the session in an epoll.
    pub(super) fn name(self, side: Side) -> u64 {
        let token = u64::from(self.use_count) << 32 | u64::from(self.place);
        match side {
            Side::Target => token,
            Side::Stream => token | STREAM_BIT,
        }
    }

    /// Returns what has this name.
    pub(super) fn of_name(name: u64) -> (Self, Side) {
        let half = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default();
        let token = Self {
            place: half(name),
            use_count: half(name >> 32) & USE_COUNT_MASK,
        };
        let is_stream = name & STREAM_BIT != 0;
        (
            token,
            if is_stream {
                Side::Stream
            } else {
                Side::Target
            },
        )
    }
}

/// The sessions of a loop.
pub(super) struct Table<S> {
    places: Vec<Place<S>>,
    free: Vec<u32>,
}

struct Place<S> {
    use_count: u32,
    session: Option<S>,
}

impl<S> Default for Table<S> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<S> Table<S> {
    pub(super) fn get(&mut self, token: Token) -> Option<&mut S> {
        let place = self.places.get_mut(usize::try_from(token.place).ok()?)?;
        place
            .session
            .as_mut()
            .filter(|_| place.use_count == token.use_count)
    }

    pub(super) fn insert(&mut self, session: S) -> Token {
        let Ok(token) = self.insert_with(|_| Ok::<S, Infallible>(session));
        token
    }

    /// Inserts a session that has to know its token when it is made.
    ///
    /// Errors: those of `make`; nothing is inserted then.
    pub(super) fn insert_with<E>(
        &mut self,
        make: impl FnOnce(Token) -> Result<S, E>,
    ) -> Result<Token, E> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place {
                use_count: 0,
                session: None,
            });
            u32::try_from(self.places.len() - 1).expect("memory ends before")
        });
        let place = &mut self.places[usize::try_from(index).expect("it is an index")];
        place.use_count = (place.use_count.wrapping_add(1) & USE_COUNT_MASK).max(1);
        let token = Token {
            place: index,
            use_count: place.use_count,
        };
        match make(token) {
            Ok(session) => {
                place.session = Some(session);
                Ok(token)
            }
            Err(error) => {
                self.free.push(index);
                Err(error)
            }
        }
    }

    pub(super) fn remove(&mut self, token: Token) -> Option<S> {
        self.get(token)?;
        let place = self.places.get_mut(usize::try_from(token.place).ok()?)?;
        let session = place.session.take()?;
        self.free.push(token.place);
        Some(session)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &S> {
        self.places
            .iter()
            .filter_map(|place| place.session.as_ref())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    pub(super) fn tokens_where(&self, condition: impl Fn(&S) -> bool) -> Vec<Token> {
        let is_meant = |(index, place): (usize, &Place<S>)| {
            place
                .session
                .as_ref()
                .filter(|session| condition(session))?;
            Some(Token {
                place: u32::try_from(index).ok()?,
                use_count: place.use_count,
            })
        };
        let places = self.places.iter().enumerate();
        places.filter_map(is_meant).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_token_does_not_find_the_next_session_at_its_place() {
        let mut table = Table::default();
        assert!(table.is_empty());
        let first = table.insert("first");
        assert_eq!(table.remove(first), Some("first"));
        assert!(table.is_empty());
        let second = table.insert("second");
        assert_eq!(second.place, first.place);
        assert_eq!(table.get(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get(second), Some(&mut "second"));
        assert!(!table.is_empty());
    }

    #[test]
    fn names_tell_session_and_side_and_are_none_of_the_fixed_ones() {
        let mut table = Table::default();
        for _ in 0..3 {
            table.insert(());
        }
        for use_count in [1, 2, USE_COUNT_MASK] {
            for place in [0, 2, u32::MAX] {
                let token = Token { place, use_count };
                for side in [Side::Target, Side::Stream] {
                    assert_eq!(Token::of_name(token.name(side)), (token, side));
                    assert!(token.name(side) > u64::from(u32::MAX));
                }
            }
        }
    }

    #[test]
    fn a_session_that_could_not_be_made_leaves_no_trace() {
        let mut table = Table::<()>::default();
        let mut late = None;
        let result = table.insert_with(|token| {
            late = Some(token);
            Err("no descriptor")
        });
        assert_eq!(result, Err("no descriptor"));
        assert!(table.is_empty());
        let next = table.insert(());
        assert_ne!(Some(next), late);
        assert_eq!(table.places.len(), 1);
    }

    #[test]
    fn uses_of_a_place_begin_again_at_one() {
        let mut table = Table::default();
        let token = table.insert(1);
        table.remove(token);
        table.places[0].use_count = USE_COUNT_MASK;
        assert_eq!(table.insert(2).use_count, 1);
    }

    #[test]
    fn sessions_are_found_by_what_they_are() {
        let mut table = Table::default();
        let tokens: Vec<Token> = (0..5).map(|number| table.insert(number)).collect();
        table.remove(tokens[2]);
        assert_eq!(table.tokens_where(|number| number % 2 == 0).len(), 2);
        assert_eq!(table.tokens_where(|number| *number == 3), [tokens[3]]);
        assert_eq!(table.iter().sum::<i32>(), 8);
    }
}
