//! Whom an address stands for, where all who come share what there is.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::listen::canonical;

/// Returns whose places somebody at `address` takes: an address, of IPv6 the network that one
/// subscriber has.
pub fn origin_of(address: SocketAddr) -> IpAddr {
    match canonical(address).ip() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => {
            let network = ip.to_bits() >> 64 << 64;
            Ipv6Addr::from_bits(network).into()
        }
    }
}

/// Returns who gives way: of the origin that has most `places`, the one with the least number, who
/// has been here longest.
pub fn oldest_of_busiest<N: Copy + Ord>(places: impl Iterator<Item = (IpAddr, N)>) -> Option<N> {
    let mut counts: HashMap<IpAddr, (usize, N)> = HashMap::new();
    for (origin, number) in places {
        let (count, oldest) = counts.entry(origin).or_insert((0, number));
        *count += 1;
        *oldest = number.min(*oldest);
    }
    let busiest = counts.into_values().max_by_key(|(count, _)| *count);
    busiest.map(|(_, oldest)| oldest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscriber_of_ipv6_is_one_origin() {
        let origin = |text: &str| origin_of(text.parse().unwrap());
        let one = origin("[2001:db8:1:2::7]:4");
        assert_eq!(one, origin("[2001:db8:1:2:ffff::8]:5"));
        assert_ne!(one, origin("[2001:db8:1:3::7]:4"));
        assert_eq!(origin("203.0.113.7:4"), origin("[::ffff:203.0.113.7]:5"));
        assert_ne!(origin("203.0.113.7:4"), origin("203.0.113.8:4"));
    }

    #[test]
    fn the_oldest_of_the_busiest_gives_way() {
        let origin = |host| IpAddr::from([203, 0, 113, host]);
        let places = [(1, 4), (2, 9), (2, 7), (2, 8), (3, 1)];
        let places = places.map(|(host, number)| (origin(host), number));
        assert_eq!(oldest_of_busiest(places.into_iter()), Some(7));
        assert_eq!(oldest_of_busiest::<u64>([].into_iter()), None);
    }
}
