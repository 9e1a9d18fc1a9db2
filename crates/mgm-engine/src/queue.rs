//! Requests that wait for a place.

use std::collections::{HashMap, VecDeque};

/// Waiting requests: clients take turns, the requests of one client stand in line.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    lines: HashMap<u64, VecDeque<T>>,
    /// Clients with waiting requests, the next one first.
    turns: VecDeque<u64>,
    len: usize,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            lines: HashMap::new(),
            turns: VecDeque::new(),
            len: 0,
        }
    }
}

impl<T> Queue<T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, client: u64, item: T) {
        let line = self.lines.entry(client).or_default();
        if line.is_empty() {
            self.turns.push_back(client);
        }
        line.push_back(item);
        self.len += 1;
    }

    /// The request whose turn it is.
    pub(crate) fn peek(&self) -> Option<&T> {
        self.lines.get(self.turns.front()?)?.front()
    }

    /// Takes the request whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let client = self.turns.pop_front()?;
        let line = self.lines.get_mut(&client)?;
        let item = line.pop_front()?;
        if line.is_empty() {
            self.lines.remove(&client);
        } else {
            self.turns.push_back(client);
        }
        self.len -= 1;
        Some(item)
    }

    /// Takes out all requests that `leaves` says so of.
    pub(crate) fn take_where(&mut self, mut leaves: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for line in self.lines.values_mut() {
            let mut index = 0;
            while let Some(item) = line.get(index) {
                if leaves(item) {
                    taken.extend(line.remove(index));
                } else {
                    index += 1;
                }
            }
        }
        self.len -= taken.len();
        self.lines.retain(|_, line| !line.is_empty());
        self.turns.retain(|client| self.lines.contains_key(client));
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_take_turns() {
        let mut queue = Queue::default();
        for (client, item) in [
            (1, "a1"),
            (1, "a2"),
            (1, "a3"),
            (2, "b1"),
            (3, "c1"),
            (2, "b2"),
        ] {
            queue.push(client, item);
        }
        assert_eq!((queue.len(), queue.peek()), (6, Some(&"a1")));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, ["a1", "b1", "c1", "a2", "b2", "a3"]);
        assert_eq!((queue.len(), queue.peek()), (0, None));
    }

    #[test]
    fn those_who_leave_are_taken_out() {
        let mut queue = Queue::default();
        for (client, item) in [(1, 10), (1, 11), (2, 20), (3, 30), (3, 31)] {
            queue.push(client, item);
        }
        let mut taken = queue.take_where(|item| [10, 20, 31].contains(item));
        taken.sort_unstable();
        assert_eq!((taken, queue.len()), (vec![10, 20, 31], 2));
        queue.push(2, 21);
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [11, 30, 21]);
    }
}
