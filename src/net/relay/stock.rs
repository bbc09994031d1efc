//! Buffers and pipes that relays borrow while bytes are on their way.
//!
//! An idle connection holds none of them. What comes back is kept for the next one, up to a
//! bound; what is taken beyond it is made and thrown away.

use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::time::Instant;

use rustix::pipe::PipeFlags;

use crate::limits::{
    BUFFERS_IDLE_MAX, LARGE_BUFFER_SIZE, LARGE_BUFFERS_MAX, PIPE_RETRY_INTERVAL, PIPE_SIZE,
    PIPE_SIZE_MIN, PIPES_IDLE_MAX, PIPES_MAX,
};
use crate::runtime::threads::lock;

/// The stock of one instance.
#[derive(Debug)]
pub struct Stock {
    small: Shelf<Box<[u8]>>,
    large: Shelf<Box<[u8]>>,
    pipes: Shelf<Pipe>,
    /// When the kernel last had no pipe for us: it is not asked again at once.
    pipe_refused_at: Mutex<Option<Instant>>,
    small_buffer_size: usize,
}

/// Things of one kind: those that wait, and how many there are in all.
#[derive(Debug)]
struct Shelf<T> {
    state: Mutex<ShelfState<T>>,
    idle_max: usize,
    total_max: usize,
}

#[derive(Debug)]
struct ShelfState<T> {
    idle: Vec<T>,
    total_count: usize,
}

/// What a shelf has to offer.
enum Offer<T> {
    Used(T),
    /// There is room for one more: make it.
    Room,
    Full,
}

impl<T> Shelf<T> {
    fn new(idle_max: usize, total_max: usize) -> Self {
        let state = ShelfState {
            idle: Vec::new(),
            total_count: 0,
        };
        Self {
            state: Mutex::new(state),
            idle_max,
            total_max,
        }
    }

    fn take(&self) -> Offer<T> {
        let mut state = lock(&self.state);
        if let Some(thing) = state.idle.pop() {
            return Offer::Used(thing);
        }
        if state.total_count >= self.total_max {
            return Offer::Full;
        }
        state.total_count += 1;
        Offer::Room
    }

    /// Takes a thing back, or, given `None`, notes that one is no more.
    fn put_back(&self, thing: Option<T>) {
        let mut state = lock(&self.state);
        match thing {
            Some(thing) if state.idle.len() < self.idle_max => state.idle.push(thing),
            _ => state.total_count -= 1,
        }
    }
}

impl Stock {
    /// Makes an empty stock: buffers of `buffer_size` bytes, and as many pipes as suit a process
    /// that may open `descriptors_max` descriptors.
    pub fn new(buffer_size: usize, descriptors_max: usize) -> Self {
        Self {
            small: Shelf::new(BUFFERS_IDLE_MAX, usize::MAX),
            large: Shelf::new(PIPES_IDLE_MAX, LARGE_BUFFERS_MAX),
            // A pipe takes two descriptors, a visitor as well: no more than a sixteenth of all
            // may go into pipes.
            pipes: Shelf::new(PIPES_IDLE_MAX, PIPES_MAX.min(descriptors_max / 32)),
            pipe_refused_at: Mutex::default(),
            small_buffer_size: buffer_size,
        }
    }

    /// Lends a buffer of the ordinary size.
    pub fn take_buffer(&self) -> Buffer<'_> {
        let bytes = match self.small.take() {
            Offer::Used(bytes) => bytes,
            // The shelf is never full: each relay holds two buffers at most.
            Offer::Room | Offer::Full => vec![0; self.small_buffer_size].into_boxed_slice(),
        };
        Buffer {
            bytes,
            shelf: &self.small,
        }
    }

    /// Lends a large buffer, if the number of those allows it.
    pub fn take_large_buffer(&self) -> Option<Buffer<'_>> {
        let size = LARGE_BUFFER_SIZE.max(self.small_buffer_size);
        let bytes = match self.large.take() {
            Offer::Used(bytes) => bytes,
            Offer::Room => vec![0; size].into_boxed_slice(),
            Offer::Full => return None,
        };
        Some(Buffer {
            bytes,
            shelf: &self.large,
        })
    }

    /// Lends an empty pipe, if their number, the descriptors and the kernel allow it.
    pub fn take_pipe(&self) -> Option<PipeLoan<'_>> {
        let pipe = match self.pipes.take() {
            Offer::Used(pipe) => pipe,
            Offer::Room => match self.make_pipe() {
                Some(pipe) => pipe,
                None => {
                    self.pipes.put_back(None);
                    return None;
                }
            },
            Offer::Full => return None,
        };
        Some(PipeLoan {
            pipe: Some(pipe),
            held: 0,
            shelf: &self.pipes,
        })
    }

    fn make_pipe(&self) -> Option<Pipe> {
        let mut refused_at = lock(&self.pipe_refused_at);
        if refused_at.is_some_and(|at| at.elapsed() < PIPE_RETRY_INTERVAL) {
            return None;
        }
        let pipe = Pipe::new();
        *refused_at = pipe.is_none().then(Instant::now);
        pipe
    }
}

/// A borrowed buffer; it goes back when it is dropped.
#[derive(Debug)]
pub struct Buffer<'a> {
    /// The whole buffer; its content is whatever was in it last.
    pub bytes: Box<[u8]>,
    shelf: &'a Shelf<Box<[u8]>>,
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        self.shelf.put_back(Some(std::mem::take(&mut self.bytes)));
    }
}

/// A pipe that closes itself. `size` is what the kernel granted (bytes).
#[derive(Debug)]
pub struct Pipe {
    /// Where the kernel takes bytes out.
    pub read_end: OwnedFd,
    /// Where the kernel puts bytes in.
    pub write_end: OwnedFd,
    /// Most bytes to ask for at once.
    pub size: usize,
}

impl Pipe {
    /// Makes a pipe large enough to be worth it.
    fn new() -> Option<Self> {
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (read_end, write_end) = rustix::pipe::pipe_with(flags).ok()?;
        // A user who is not root gets large pipes only up to a sum (pipe-user-pages-soft).
        let size = [PIPE_SIZE, PIPE_SIZE_MIN]
            .into_iter()
            .find_map(|size| rustix::pipe::fcntl_setpipe_size(&write_end, size).ok())?;
        Some(Self {
            read_end,
            write_end,
            size,
        })
    }
}

/// A borrowed pipe; it goes back when it is dropped empty.
#[derive(Debug)]
pub struct PipeLoan<'a> {
    pipe: Option<Pipe>,
    /// Bytes inside it.
    pub held: usize,
    shelf: &'a Shelf<Pipe>,
}

impl PipeLoan<'_> {
    /// Returns the pipe.
    pub fn pipe(&self) -> &Pipe {
        self.pipe.as_ref().expect("only drop takes it out")
    }
}

impl Drop for PipeLoan<'_> {
    fn drop(&mut self) {
        // Bytes of a broken connection must not reach the next one.
        let pipe = self.pipe.take().filter(|_| self.held == 0);
        self.shelf.put_back(pipe);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_lent_again() {
        let stock = Stock::new(4096, 1024);
        let first = stock.take_buffer();
        let address = first.bytes.as_ptr();
        drop(first);
        assert_eq!(stock.take_buffer().bytes.as_ptr(), address);
        assert_eq!(lock(&stock.small.state).total_count, 1);
    }

    #[test]
    fn more_than_the_bound_is_not_kept() {
        let stock = Stock::new(4096, 1024);
        let lent: Vec<_> = (0..BUFFERS_IDLE_MAX + 3)
            .map(|_| stock.take_buffer())
            .collect();
        drop(lent);
        let state = lock(&stock.small.state);
        assert_eq!(
            (state.idle.len(), state.total_count),
            (BUFFERS_IDLE_MAX, BUFFERS_IDLE_MAX)
        );
    }

    #[test]
    fn the_number_of_pipes_and_large_buffers_is_bounded() {
        let stock = Stock::new(4096, 32 * 2);
        let pipes: Vec<_> = std::iter::from_fn(|| stock.take_pipe()).collect();
        assert_eq!(pipes.len(), 2);
        let large: Vec<_> = std::iter::from_fn(|| stock.take_large_buffer()).collect();
        assert_eq!(large.len(), LARGE_BUFFERS_MAX);
    }

    #[test]
    fn a_pipe_with_bytes_in_it_is_thrown_away() {
        let stock = Stock::new(4096, 1024);
        let mut pipe = stock.take_pipe().unwrap();
        pipe.held = rustix::io::write(&pipe.pipe().write_end, b"secret").unwrap();
        drop(pipe);
        assert_eq!(lock(&stock.pipes.state).total_count, 0);
    }
}
