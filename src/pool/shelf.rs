//! Idle pool connections by id, and the orders that wait for one that is still on its way.
//!
//! Pure: knows nothing of what a connection is, nor of the time but what it is given.
//!
//! ```text
//!            put ──▶ idle ──▶ take_next, claim
//!                     │ retire
//!                     ▼
//!                  retired ──▶ claim
//! ```
//!
//! A retired connection is one that the other end may already have dropped, or still have taken:
//! only an order that names it can have it.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use crate::wire::signal::PoolId;

/// Idle connections `C` and waiting orders `O` of one session.
#[derive(Debug)]
pub struct Shelf<C, O> {
    /// By age: the number of a connection grows with each that is put.
    by_age: BTreeMap<u64, (PoolId, C)>,
    /// The ids of exactly those in `by_age`.
    by_id: HashMap<PoolId, u64>,
    next_number: u64,
    /// Those with smaller numbers are retired.
    first_idle_number: u64,
    /// Orders for connections that are not there; none of them is in `by_id`.
    orders: HashMap<PoolId, Order<O>>,
    orders_max: usize,
}

#[derive(Debug)]
struct Order<O> {
    order: O,
    deadline: Instant,
}

/// What became of a connection that was put.
#[derive(Debug, PartialEq, Eq)]
pub enum Put<C, O> {
    /// It is idle.
    Shelved,
    /// This order has waited for it.
    Claimed(C, O),
    /// There is another one of this id: one of both ends has lost count.
    Refused(C),
}

/// What became of an order.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim<C, O> {
    /// Its connection is here.
    Ready(C, O),
    /// Its connection is not here yet.
    Waiting,
    /// As many orders wait as may wait, or one for the same connection.
    Refused(O),
}

impl<C, O> Shelf<C, O> {
    /// Makes an empty shelf on which `orders_max` orders may wait.
    pub fn new(orders_max: usize) -> Self {
        Self {
            by_age: BTreeMap::new(),
            by_id: HashMap::new(),
            next_number: 0,
            first_idle_number: 0,
            orders: HashMap::new(),
            orders_max,
        }
    }

    /// Puts a new connection, the youngest of all.
    pub fn put(&mut self, id: PoolId, connection: C) -> Put<C, O> {
        if let Some(waiting) = self.orders.remove(&id) {
            return Put::Claimed(connection, waiting.order);
        }
        if self.by_id.contains_key(&id) {
            return Put::Refused(connection);
        }
        let number = self.next_number;
        self.next_number += 1;
        self.by_id.insert(id, number);
        self.by_age.insert(number, (id, connection));
        Put::Shelved
    }

    /// Takes the idle connection that has been here longest.
    ///
    /// The oldest, because the other end has surely heard of it by now.
    pub fn take_next(&mut self) -> Option<(PoolId, C)> {
        let (&number, _) = self.by_age.range(self.first_idle_number..).next()?;
        let (id, connection) = self.by_age.remove(&number)?;
        self.by_id.remove(&id);
        Some((id, connection))
    }

    /// Takes the connection called `id`, retired or not.
    pub fn take_by_id(&mut self, id: PoolId) -> Option<C> {
        let number = self.by_id.remove(&id)?;
        self.by_age
            .remove(&number)
            .map(|(_, connection)| connection)
    }

    /// Takes the connection called `id` for `order`, or lets the order wait until `deadline`.
    pub fn claim(&mut self, id: PoolId, order: O, deadline: Instant) -> Claim<C, O> {
        if let Some(connection) = self.take_by_id(id) {
            return Claim::Ready(connection, order);
        }
        if self.orders.len() >= self.orders_max || self.orders.contains_key(&id) {
            return Claim::Refused(order);
        }
        self.orders.insert(id, Order { order, deadline });
        Claim::Waiting
    }

    /// Retires all connections that are idle.
    pub fn retire(&mut self) {
        self.first_idle_number = self.next_number;
    }

    /// Takes everything: the connections and the orders.
    pub fn clear(&mut self) -> (Vec<C>, Vec<O>) {
        self.by_id.clear();
        let connections = std::mem::take(&mut self.by_age).into_values();
        let orders = std::mem::take(&mut self.orders).into_values();
        (
            connections.map(|(_, connection)| connection).collect(),
            orders.map(|waiting| waiting.order).collect(),
        )
    }

    /// Takes the connections that `is_over` says so of.
    pub fn sweep(&mut self, mut is_over: impl FnMut(&mut C) -> bool) -> Vec<C> {
        let mut over = Vec::new();
        for (number, (id, connection)) in &mut self.by_age {
            if is_over(connection) {
                over.push((*number, *id));
            }
        }
        let mut taken = Vec::new();
        for (number, id) in over {
            self.by_id.remove(&id);
            taken.extend(
                self.by_age
                    .remove(&number)
                    .map(|(_, connection)| connection),
            );
        }
        taken
    }

    /// Takes the orders whose deadline is over.
    pub fn expire(&mut self, now: Instant) -> Vec<(PoolId, O)> {
        let late = self.orders.extract_if(|_, waiting| waiting.deadline <= now);
        late.map(|(id, waiting)| (id, waiting.order)).collect()
    }

    /// Takes all retired connections.
    pub fn take_retired(&mut self) -> Vec<C> {
        let idle = self.by_age.split_off(&self.first_idle_number);
        let retired = std::mem::replace(&mut self.by_age, idle);
        for (id, _) in retired.values() {
            self.by_id.remove(id);
        }
        retired
            .into_values()
            .map(|(_, connection)| connection)
            .collect()
    }

    /// Returns how many of the idle connections `is_meant` says so of.
    pub fn count_idle(&self, is_meant: impl Fn(&C) -> bool) -> usize {
        let idle = self.by_age.range(self.first_idle_number..);
        idle.filter(|(_, (_, connection))| is_meant(connection))
            .count()
    }

    /// Returns how many connections are here, retired ones included.
    pub fn total_count(&self) -> usize {
        self.by_age.len()
    }

    /// Returns how many connections are idle.
    pub fn idle_count(&self) -> usize {
        // Retired ones are few and short-lived: counting them beats keeping a second count.
        let retired = self.by_age.range(..self.first_idle_number).count();
        self.by_age.len() - retired
    }

    #[cfg(test)]
    fn check_invariants(&self) {
        assert_eq!(self.by_age.len(), self.by_id.len());
        for (number, (id, _)) in &self.by_age {
            assert_eq!(self.by_id.get(id), Some(number));
            assert!(*number < self.next_number);
        }
        assert!(self.orders.keys().all(|id| !self.by_id.contains_key(id)));
        assert!(self.orders.len() <= self.orders_max);
        assert!(self.first_idle_number <= self.next_number);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::*;

    fn id(number: u32) -> PoolId {
        PoolId(number.to_be_bytes())
    }

    fn shelf_with(numbers: std::ops::Range<u32>) -> Shelf<u32, &'static str> {
        let mut shelf = Shelf::new(2);
        for number in numbers {
            assert_eq!(shelf.put(id(number), number), Put::Shelved);
        }
        shelf
    }

    #[test]
    fn the_oldest_connection_is_taken_first() {
        let mut shelf = shelf_with(1..4);
        assert_eq!(shelf.take_by_id(id(2)), Some(2));
        assert_eq!(shelf.take_next(), Some((id(1), 1)));
        assert_eq!(shelf.take_next(), Some((id(3), 3)));
        assert_eq!(shelf.take_next(), None);
    }

    #[test]
    fn an_order_gets_its_connection_whichever_comes_first() {
        let mut shelf = shelf_with(1..2);
        let deadline = Instant::now();
        assert_eq!(shelf.claim(id(1), "one", deadline), Claim::Ready(1, "one"));
        assert_eq!(shelf.claim(id(2), "two", deadline), Claim::Waiting);
        assert_eq!(shelf.put(id(2), 2), Put::Claimed(2, "two"));
        assert_eq!(shelf.idle_count(), 0);
    }

    #[test]
    fn the_same_id_is_not_taken_twice() {
        let mut shelf = shelf_with(1..2);
        assert_eq!(shelf.put(id(1), 9), Put::Refused(9));
        let deadline = Instant::now();
        assert_eq!(shelf.claim(id(2), "two", deadline), Claim::Waiting);
        assert_eq!(
            shelf.claim(id(2), "again", deadline),
            Claim::Refused("again")
        );
    }

    #[test]
    fn as_many_orders_wait_as_may_wait() {
        let mut shelf = shelf_with(0..0);
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        assert_eq!(shelf.claim(id(1), "one", now), Claim::Waiting);
        assert_eq!(shelf.claim(id(2), "two", later), Claim::Waiting);
        assert_eq!(shelf.claim(id(3), "three", later), Claim::Refused("three"));
        assert_eq!(shelf.expire(now), [(id(1), "one")]);
        assert_eq!(shelf.claim(id(3), "three", later), Claim::Waiting);
    }

    #[test]
    fn a_retired_connection_is_there_for_an_order_alone() {
        let mut shelf = shelf_with(1..3);
        shelf.retire();
        assert_eq!((shelf.idle_count(), shelf.take_next()), (0, None));
        assert_eq!(shelf.put(id(3), 3), Put::Shelved);
        assert_eq!(shelf.take_next(), Some((id(3), 3)));
        let claimed = shelf.claim(id(1), "one", Instant::now());
        assert_eq!(claimed, Claim::Ready(1, "one"));
        assert_eq!(shelf.put(id(4), 4), Put::Shelved);
        assert_eq!((shelf.idle_count(), shelf.total_count()), (1, 2));
        assert_eq!(shelf.take_retired(), [2]);
        assert_eq!(shelf.clear(), (vec![4], vec![]));
    }

    #[test]
    fn nothing_is_lost_or_doubled_in_any_order() {
        let mut state = 7_u64;
        let mut random = move |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            u32::try_from(state % bound).unwrap()
        };
        let mut shelf: Shelf<u32, u32> = Shelf::new(8);
        let now = Instant::now();
        let (mut inside, mut idle) = (HashSet::new(), HashSet::new());
        for _ in 0..20_000 {
            let number = random(32);
            match random(7) {
                0 | 1 => match shelf.put(id(number), number) {
                    Put::Shelved => {
                        assert!(inside.insert(number) && idle.insert(number));
                    }
                    Put::Claimed(connection, order) => assert_eq!(connection, order),
                    Put::Refused(_) => assert!(inside.contains(&number)),
                },
                2 => match shelf.take_next() {
                    Some((taken, connection)) => {
                        assert_eq!(taken, id(connection));
                        assert!(inside.remove(&connection) && idle.remove(&connection));
                    }
                    None => assert!(idle.is_empty()),
                },
                3 => match shelf.claim(id(number), number, now) {
                    Claim::Ready(connection, order) => {
                        assert_eq!(connection, order);
                        assert!(inside.remove(&number));
                        idle.remove(&number);
                    }
                    Claim::Waiting | Claim::Refused(_) => assert!(!inside.contains(&number)),
                },
                4 if random(8) == 0 => {
                    shelf.retire();
                    idle.clear();
                }
                4 if random(8) == 0 => {
                    for connection in shelf.take_retired() {
                        assert!(inside.remove(&connection) && !idle.contains(&connection));
                    }
                }
                5 => {
                    for connection in shelf.sweep(|connection| *connection == number) {
                        assert!(inside.remove(&connection));
                        idle.remove(&connection);
                    }
                }
                _ => drop(shelf.expire(now)),
            }
            shelf.check_invariants();
            assert_eq!(shelf.idle_count(), idle.len());
        }
    }
}
