//! Figures of the machine that the master runs on, from /proc and /sys.
//!
//! A file that is missing or reads otherwise than expected makes its figures 0, the processor's -1:
//! nothing here fails.
//!
//! Source: proc(5); in the kernel's documentation, `admin-guide/iostats`, `filesystems/proc`,
//! `ABI/testing/sysfs-class-net` and `ABI/testing/sysfs-class-net-dsa`.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::limits::{HOST_FILE_SIZE_MAX, HOST_LOOK_INTERVAL};

/// What the kernel counts in, whatever the device (bytes).
const SECTOR_SIZE: u64 = 512;

/// Values of the first line of /proc/stat that together are all time; what follows them is part of
/// them once more.
const PROCESSOR_TIMES_COUNT: usize = 8;

/// How names of interfaces begin that carry what others carry as well: bridges, tunnels, inner ends
/// of containers and the like.
const VIRTUAL_PREFIXES: [&str; 29] = [
    "bond",
    "br-",
    "cali",
    "cilium",
    "cni",
    "docker",
    "dummy",
    "flannel",
    "geneve",
    "gre",
    "ifb",
    "ip6",
    "ip_vti",
    "kube-",
    "lxc",
    "lxd",
    "nlmon",
    "podman",
    "ppp",
    "sit",
    "tailscale",
    "tap",
    "team",
    "tun",
    "veth",
    "virbr",
    "vxlan",
    "wg",
    "zt",
];

/// What GET /info says of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HostFigures {
    /// Share of time that the processors worked, over [`HOST_LOOK_INTERVAL`] (percent); -1 where it
    /// is not known.
    pub cpu: i64,
    /// Memory (bytes).
    pub mem_total: u64,
    /// Memory that programs could not get (bytes).
    pub mem_used: u64,
    /// Swap space (bytes).
    pub swap_total: u64,
    /// Swap space in use (bytes).
    pub swap_used: u64,
    /// Received by the network interfaces since the machine started (bytes).
    pub netrx: u64,
    /// Sent by them (bytes).
    pub nettx: u64,
    /// Read from disks since the machine started (bytes).
    pub diskr: u64,
    /// Written to them (bytes).
    pub diskw: u64,
    /// Time since the machine started (s).
    pub sysup: u64,
}

/// The machine, looked at by one at a time.
#[derive(Debug, Default)]
pub struct Host {
    /// The last look and when it ended. Whoever looks holds it meanwhile, so that all others who
    /// come then wait for that look and take it.
    last: Mutex<Option<(Instant, HostFigures)>>,
}

impl Host {
    /// Returns the figures of now, at most [`HOST_LOOK_INTERVAL`] old.
    ///
    /// Blocks: for that long, for the use of the processors takes two looks; twice as long for one
    /// who came too late for the look of another.
    pub fn read(&self) -> HostFigures {
        self.read_with(HOST_LOOK_INTERVAL, look)
    }

    fn read_with(&self, age_max: Duration, look: impl FnOnce() -> HostFigures) -> HostFigures {
        // It is written in one step, so it is whole even if someone panicked who held it.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((ended_at, figures)) = *last
            && ended_at.elapsed() < age_max
        {
            return figures;
        }
        let figures = look();
        *last = Some((Instant::now(), figures));
        figures
    }
}

/// Returns the system as Go names it.
pub fn os() -> &'static str {
    std::env::consts::OS
}

/// Returns the kind of processor that this program was made for, as Go names it.
pub fn arch() -> &'static str {
    go_arch(std::env::consts::ARCH, cfg!(target_endian = "little"))
}

fn go_arch(arch: &'static str, little_endian: bool) -> &'static str {
    match (arch, little_endian) {
        ("x86_64", _) => "amd64",
        ("x86", _) => "386",
        ("aarch64", _) => "arm64",
        ("mips" | "mips32r6", false) => "mips",
        ("mips" | "mips32r6", true) => "mipsle",
        ("mips64" | "mips64r6", false) => "mips64",
        ("mips64" | "mips64r6", true) => "mips64le",
        ("powerpc64", false) => "ppc64",
        ("powerpc64", true) => "ppc64le",
        ("loongarch64", _) => "loong64",
        // The others have the same name there: arm, riscv64, s390x.
        _ => arch,
    }
}

/// Looks at the machine. Blocks for [`HOST_LOOK_INTERVAL`].
fn look() -> HostFigures {
    let before = read_bounded("/proc/stat");
    thread::sleep(HOST_LOOK_INTERVAL);
    let after = read_bounded("/proc/stat");
    let memory = Memory::parse(&read_bounded("/proc/meminfo"));
    let (netrx, nettx) = parse_interfaces(&read_bounded("/proc/net/dev"), is_hardware_interface);
    let (diskr, diskw) = parse_disks(&read_bounded("/proc/diskstats"), is_hardware_disk);
    HostFigures {
        cpu: parse_processors(&before, &after).unwrap_or(-1),
        mem_total: memory.total,
        mem_used: memory.used,
        swap_total: memory.swap_total,
        swap_used: memory.swap_used,
        netrx,
        nettx,
        diskr,
        diskw,
        sysup: parse_uptime(&read_bounded("/proc/uptime")).unwrap_or(0),
    }
}

/// Returns the lines at the start of a file that are no longer than [`HOST_FILE_SIZE_MAX`]
/// together; none if it cannot be read.
fn read_bounded(path: &str) -> String {
    let mut bytes = Vec::new();
    let limit = u64::try_from(HOST_FILE_SIZE_MAX).unwrap_or(u64::MAX);
    let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes));
    if read.is_err() {
        return String::new();
    }
    whole_lines(&mut bytes, HOST_FILE_SIZE_MAX);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Takes a line that is cut off from the end of `bytes`, of which `size_max` were wanted.
fn whole_lines(bytes: &mut Vec<u8>, size_max: usize) {
    if bytes.len() >= size_max {
        let end = bytes.iter().rposition(|byte| *byte == b'\n');
        bytes.truncate(end.unwrap_or(0));
    }
}

/// Returns whether an interface belongs to hardware. The one that leads to the switch of a router
/// does not count beside the ports of that switch, which carry the same.
fn is_hardware_interface(name: &str) -> bool {
    let folder = Path::new("/sys/class/net").join(name);
    folder.join("device").exists() && !folder.join("dsa").exists()
}

/// Returns whether a disk is a whole one that belongs to hardware: partitions have no folder
/// there, and what the kernel makes up (loop, ram, zram, dm, md) has no device.
fn is_hardware_disk(name: &str) -> bool {
    // The kernel writes `!` where a name has a slash.
    let folder = Path::new("/sys/block").join(name.replace('/', "!"));
    folder.join("device").exists()
}

/// Returns how many percent of the time between two looks at /proc/stat the processors worked.
fn parse_processors(before: &str, after: &str) -> Option<i64> {
    let (before, after) = (processor_times(before)?, processor_times(after)?);
    let total = after.total.checked_sub(before.total)?;
    // Waiting for disks may count backwards.
    let idle = after.idle.saturating_sub(before.idle).min(total);
    let share = (u128::from(total - idle) * 100 + u128::from(total) / 2).checked_div(total.into());
    i64::try_from(share?).ok()
}

struct ProcessorTimes {
    total: u64,
    idle: u64,
}

fn processor_times(text: &str) -> Option<ProcessorTimes> {
    let mut words = text.lines().next()?.split_ascii_whitespace();
    if words.next()? != "cpu" {
        return None;
    }
    let mut times = ProcessorTimes { total: 0, idle: 0 };
    let mut count = 0;
    for word in words.take(PROCESSOR_TIMES_COUNT) {
        let time = word.parse().ok()?;
        times.total = times.total.checked_add(time)?;
        // User, nice, system, idle, waiting for disks; then what interrupts and hosts took.
        if count == 3 || count == 4 {
            times.idle += time;
        }
        count += 1;
    }
    (count >= 4).then_some(times)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Memory {
    total: u64,
    used: u64,
    swap_total: u64,
    swap_used: u64,
}

impl Memory {
    fn parse(text: &str) -> Self {
        let size = |name: &str| memory_size(text, name);
        // Kernels before 3.14 do not say what programs could get: about what is free, and what is
        // kept of files and can be read again.
        let guess = || {
            let kept = ["MemFree", "Buffers", "Cached", "SReclaimable"];
            let sizes = kept.map(|name| size(name).unwrap_or(0));
            // What programs share counts as kept and cannot be given up.
            let shared = size("Shmem").unwrap_or(0);
            sizes
                .into_iter()
                .fold(0, u64::saturating_add)
                .saturating_sub(shared)
        };
        let total = size("MemTotal").unwrap_or(0);
        let available = size("MemAvailable").unwrap_or_else(guess);
        let swap_total = size("SwapTotal").unwrap_or(0);
        Self {
            total,
            used: total.saturating_sub(available),
            swap_total,
            swap_used: swap_total.saturating_sub(size("SwapFree").unwrap_or(0)),
        }
    }
}

/// Returns a size of /proc/meminfo (bytes).
fn memory_size(text: &str, name: &str) -> Option<u64> {
    let values = |line| str::strip_prefix(line, name)?.strip_prefix(':');
    let value = text.lines().find_map(values)?;
    let mut words = value.split_ascii_whitespace();
    let size: u64 = words.next()?.parse().ok()?;
    match words.next() {
        Some("kB") => size.checked_mul(1024),
        _ => None,
    }
}

/// Returns what was received and sent by the interfaces that count, from /proc/net/dev.
///
/// Where there is hardware, its interfaces do: whatever a bridge, a tunnel or a container moves
/// beyond this machine is in them already. Where none is to be seen, as within a container, the
/// names decide.
fn parse_interfaces(text: &str, is_hardware: impl Fn(&str) -> bool) -> (u64, u64) {
    let counts = |line| {
        let (name, counts) = str::rsplit_once(line, ':')?;
        let counts = counts.split_ascii_whitespace().map(|word| word.parse());
        let counts: Vec<u64> = counts.collect::<Result<_, _>>().ok()?;
        // Eight of what was received, eight of what was sent, bytes first.
        Some((name.trim(), *counts.first()?, *counts.get(8)?))
    };
    let all = text.lines().filter_map(counts);
    sum(all, is_hardware, is_named_as_uplink)
}

fn is_named_as_uplink(name: &str) -> bool {
    // `eth0.5` is a network within that of `eth0`.
    let is_part = name.contains(['.', '@']);
    name != "lo" && !is_part && !VIRTUAL_PREFIXES.iter().any(|way| name.starts_with(way))
}

/// Returns what was read and written by whole disks, from /proc/diskstats; where no hardware is to
/// be seen, the names decide.
fn parse_disks(text: &str, is_hardware: impl Fn(&str) -> bool) -> (u64, u64) {
    let counts = |line| {
        // Major, minor, name; reads, of them merged, sectors, time; the same of writes.
        let words: Vec<&str> = str::split_ascii_whitespace(line).collect();
        let size = |index: usize| {
            let sectors: u64 = words.get(index)?.parse().ok()?;
            sectors.checked_mul(SECTOR_SIZE)
        };
        Some((*words.get(2)?, size(5)?, size(9)?))
    };
    let all = text.lines().filter_map(counts);
    sum(all, is_hardware, is_named_as_disk)
}

fn is_named_as_disk(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    if let Some(numbers) = name.strip_prefix("nvme") {
        let parts = numbers.split_once('n');
        return parts.is_some_and(|(controller, disk)| is_number(controller) && is_number(disk));
    }
    if let Some(number) = name.strip_prefix("mmcblk") {
        return is_number(number);
    }
    let letters = ["sd", "hd", "vd", "xvd"].iter();
    letters
        .filter_map(|kind| name.strip_prefix(kind))
        .any(|letters| !letters.is_empty() && letters.bytes().all(|c| c.is_ascii_lowercase()))
}

/// Returns the two sums over all that is hardware, or that `is_named` takes if nothing is.
fn sum<'a>(
    all: impl Iterator<Item = (&'a str, u64, u64)>,
    is_hardware: impl Fn(&str) -> bool,
    is_named: impl Fn(&str) -> bool,
) -> (u64, u64) {
    let mut hardware = None;
    let mut named = (0, 0);
    for (name, first, second) in all {
        let add = |sums: (u64, u64)| (sums.0.saturating_add(first), sums.1.saturating_add(second));
        if is_hardware(name) {
            hardware = Some(add(hardware.unwrap_or((0, 0))));
        } else if is_named(name) {
            named = add(named);
        }
    }
    hardware.unwrap_or(named)
}

/// Returns the whole seconds of /proc/uptime.
fn parse_uptime(text: &str) -> Option<u64> {
    let first = text.split_ascii_whitespace().next()?;
    let whole = first.split_once('.').map_or(first, |(whole, _)| whole);
    whole.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const FIGURES: HostFigures = HostFigures {
        cpu: 7,
        mem_total: 6,
        mem_used: 5,
        swap_total: 4,
        swap_used: 3,
        netrx: 2,
        nettx: 1,
        diskr: 0,
        diskw: 1,
        sysup: 2,
    };

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn those_who_come_together_share_one_look() {
        let host = Host::default();
        let looks_count = AtomicUsize::new(0);
        let look = || {
            looks_count.fetch_add(1, Ordering::Relaxed);
            FIGURES
        };
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| assert_eq!(host.read_with(HOUR, look), FIGURES));
            }
        });
        assert_eq!(looks_count.load(Ordering::Relaxed), 1);
        // What is too old is not taken.
        host.read_with(Duration::ZERO, look);
        assert_eq!(looks_count.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn this_machine_has_figures() {
        let figures = Host::default().read();
        assert!((-1..=100).contains(&figures.cpu));
        assert!(figures.mem_total > 0 && figures.sysup > 0);
        assert!(figures.mem_used > 0 && figures.mem_used <= figures.mem_total);
        assert!(figures.swap_used <= figures.swap_total);
    }

    #[test]
    fn what_is_not_there_or_odd_is_nothing() {
        assert_eq!(read_bounded("/proc/there is no such file"), "");
        for text in [
            "",
            "\n\n",
            "cpu",
            "cpu a b c d",
            ":",
            "MemTotal:",
            "1 2 sda 3",
            "\0",
        ] {
            assert_eq!(parse_processors(text, text), None, "{text}");
            assert_eq!(Memory::parse(text), Memory::default(), "{text}");
            assert_eq!(parse_interfaces(text, |_| true), (0, 0), "{text}");
            assert_eq!(parse_disks(text, |_| true), (0, 0), "{text}");
        }
        for text in ["", "up", ".5", "-1"] {
            assert_eq!(parse_uptime(text), None, "{text}");
        }
    }

    #[test]
    fn a_line_that_is_cut_off_does_not_count() {
        let mut bytes = b"a 12\nb 345".to_vec();
        whole_lines(&mut bytes, 11);
        assert_eq!(bytes, b"a 12\nb 345");
        whole_lines(&mut bytes, 10);
        assert_eq!(bytes, b"a 12");
        whole_lines(&mut bytes, 4);
        assert_eq!(bytes, b"");
    }

    #[test]
    fn processors_work_when_they_are_not_idle() {
        let share = |before: &str, after: &str| {
            let rest = "\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 5 6 7\nctxt 1\n";
            parse_processors(
                &format!("cpu  {before}{rest}"),
                &format!("cpu  {after}{rest}"),
            )
        };
        let before = "100 10 50 1000 20 1 2 3 70 5";
        // 4 of user, nice, system; 5 idle, 1 waiting for a disk.
        assert_eq!(share(before, "102 11 51 1005 21 1 2 3 72 5"), Some(40));
        // 1 each for interrupts, for soft ones and of the host, 5 idle; guests count as user.
        assert_eq!(share(before, "100 10 50 1005 20 2 3 4 99 9"), Some(38));
        assert_eq!(share(before, "110 10 50 1000 20 1 2 3 70 5"), Some(100));
        assert_eq!(share(before, "100 10 50 1010 20 1 2 3 70 5"), Some(0));
        // Kernels of old know four.
        assert_eq!(share("1 1 1 1", "2 1 1 2"), Some(50));
        // No time has passed, or it went backwards.
        assert_eq!(share(before, before), None);
        assert_eq!(share("2 1 1 1", "1 1 1 1"), None);
        // Waiting for disks went backwards.
        assert_eq!(share("0 0 0 0 20", "30 0 0 0 0"), Some(100));
        let end = u64::MAX / 8;
        let ends = format!("{end} {end} {end} {end} {end} {end} {end} {end}");
        assert_eq!(share("0 0 0 0", &ends), Some(75));
        assert_eq!(share("0 0 0 0", &format!("{} 1 0 0", u64::MAX)), None);
    }

    #[test]
    fn memory_is_used_that_programs_cannot_get() {
        let text = "MemTotal:         122880 kB\nMemFree:           20480 kB\n\
                    MemAvailable:      51200 kB\nBuffers:            1024 kB\n\
                    Cached:            30720 kB\nSwapCached:            0 kB\n\
                    SwapTotal:          2048 kB\nSwapFree:           1536 kB\n\
                    Shmem:              4096 kB\nSReclaimable:       3072 kB\n\
                    HugePages_Total:       0\n";
        let memory = Memory::parse(text);
        assert_eq!([memory.total, memory.used], [120 << 20, 70 << 20]);
        assert_eq!([memory.swap_total, memory.swap_used], [2 << 20, 512 << 10]);
        let old = text.replace("MemAvailable", "Other");
        let used = (122_880 - (20_480 + 1024 + 30_720 + 3072 - 4096)) << 10;
        assert_eq!(Memory::parse(&old).used, used);
    }

    const INTERFACES: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo
    lo: 1000000 10 0 0 0 0 0 0 1000000 10 0 0 0 0 0 0
  eth0: 5000 50 0 0 0 0 0 0 700 7 0 0 0 0 0 0
 wlan0:30 3 0 0 0 0 0 0 4 1 0 0 0 0 0 0
eth0.5: 200000 1 0 0 0 0 0 0 200000 1 0 0 0 0 0 0
br-lan: 200000 1 0 0 0 0 0 0 200000 1 0 0 0 0 0 0
veth1a2b3c4: 200000 1 0 0 0 0 0 0 200000 1 0 0 0 0 0 0
  tun0: 200000 1 0 0 0 0 0 0 200000 1 0 0 0 0 0 0
";

    #[test]
    fn interfaces_of_hardware_count_where_there_are_some() {
        assert_eq!(
            parse_interfaces(INTERFACES, |name| name == "eth0"),
            (5000, 700)
        );
        let both = |name: &str| ["eth0", "wlan0"].contains(&name);
        assert_eq!(parse_interfaces(INTERFACES, both), (5030, 704));
        // A name may hold a colon.
        let alias = INTERFACES.replace("tun0", "tun0:1");
        assert_eq!(
            parse_interfaces(&alias, |name| name == "tun0:1"),
            (200_000, 200_000)
        );
    }

    #[test]
    fn names_of_interfaces_count_where_there_is_no_hardware() {
        assert_eq!(parse_interfaces(INTERFACES, |_| false), (5030, 704));
    }

    const DISKS: &str = "\
   7       0 loop0 9 0 900 0 0 0 0 0 0 0 0 0 0 0 0
   1       0 ram0 9 0 900 0 9 0 900 0 0 0 0
   8       0 sda 100 5 4000 10 50 6 2000 20 0 30 40 0 0 0 0 0 0
   8       1 sda1 100 5 4000 10 50 6 2000 20 0 30 40 0 0 0 0 0 0
 179       0 mmcblk0 3 0 10 1 2 0 20 1 0 2 2
 179       1 mmcblk0p1 3 0 10 1 2 0 20 1 0 2 2
 259       0 nvme0n1 1 0 1 1 1 0 2 1 0 2 2
 259       1 nvme0n1p1 1 0 1 1 1 0 2 1 0 2 2
 253       0 dm-0 100 0 4000 10 50 0 2000 20 0 30 40
 254       0 zram0 100 0 4000 10 50 0 2000 20 0 30 40
";

    #[test]
    fn whole_disks_count() {
        let sizes = (4011 * SECTOR_SIZE, 2022 * SECTOR_SIZE);
        assert_eq!(parse_disks(DISKS, |_| false), sizes);
        let is_hardware = |name: &str| ["sda", "mmcblk0"].contains(&name);
        let sizes = (4010 * SECTOR_SIZE, 2020 * SECTOR_SIZE);
        assert_eq!(parse_disks(DISKS, is_hardware), sizes);
        for name in [
            "sd",
            "sda1",
            "vdb2",
            "xvda1",
            "nvme0",
            "nvme0c0n1",
            "mmcblk",
            "mmcblk0boot0",
        ] {
            assert!(!is_named_as_disk(name), "{name}");
        }
        for name in ["sdaa", "hdc", "vdb", "xvdf", "nvme10n2", "mmcblk1"] {
            assert!(is_named_as_disk(name), "{name}");
        }
    }

    #[test]
    fn the_time_since_the_start_is_in_whole_seconds() {
        assert_eq!(parse_uptime("847.99 1603.12\n"), Some(847));
        assert_eq!(parse_uptime("847 1603\n"), Some(847));
    }

    #[test]
    fn processors_are_named_as_go_names_them() {
        let named = [
            ("x86_64", true, "amd64"),
            ("x86", true, "386"),
            ("aarch64", true, "arm64"),
            ("arm", true, "arm"),
            ("mips", false, "mips"),
            ("mips", true, "mipsle"),
            ("mips64", false, "mips64"),
            ("mips64", true, "mips64le"),
            ("powerpc64", true, "ppc64le"),
            ("powerpc64", false, "ppc64"),
            ("riscv64", true, "riscv64"),
            ("s390x", false, "s390x"),
            ("loongarch64", true, "loong64"),
        ];
        for (ours, little_endian, expected) in named {
            assert_eq!(go_arch(ours, little_endian), expected);
        }
        assert_eq!(os(), "linux");
    }
}
