//! Which stream ids the peer has used.

/// How far out of order a peer may open its streams, in streams. Implementations number a stream before they announce
/// it, so ids arrive slightly out of order; the one most in use keeps at most 256 unacknowledged.
const REACH: u32 = 1024;
const WORDS: usize = (REACH / 64) as usize;

/// The set of ids a peer has used, exact for the newest [`REACH`]; older ones all count as used.
///
/// Ids of one side are all odd or all even, so what is kept is `id / 2`.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// One more than the highest index used.
    next: u32,
    /// A ring of bits for the indexes `next - REACH .. next`.
    bits: [u64; WORDS],
}

impl Seen {
    /// Adds `id`. Returns false when it was used before.
    pub(crate) fn insert(&mut self, id: u32) -> bool {
        let index = id / 2;
        if self.contains(id) {
            return false;
        }
        if index >= self.next {
            if index - self.next >= REACH {
                self.bits = [0; WORDS];
            } else {
                for skipped in self.next..index {
                    self.bits[word(skipped)] &= !bit(skipped);
                }
            }
            self.next = index + 1;
        }
        self.bits[word(index)] |= bit(index);
        true
    }

    /// Whether `id` was used, or is too old to tell.
    pub(crate) fn contains(&self, id: u32) -> bool {
        let index = id / 2;
        index < self.next && (self.next - index > REACH || self.bits[word(index)] & bit(index) != 0)
    }
}

fn word(index: u32) -> usize {
    (index % REACH / 64) as usize
}

fn bit(index: u32) -> u64 {
    1 << (index % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_used_from_unused_out_of_order_and_over_jumps() {
        let mut seen = Seen::default();
        assert!(seen.insert(5));
        assert!(!seen.insert(5));
        assert!(seen.insert(1) && seen.insert(3) && !seen.insert(1));
        assert!(!seen.contains(7));
        assert!(seen.insert(2 * REACH + 5), "a jump of exactly the ring's length");
        assert!(!seen.contains(2 * REACH + 3));
        assert!(seen.contains(5), "too old to tell");
        assert!(seen.insert(u32::MAX) && !seen.insert(u32::MAX));
        assert!(seen.insert(u32::MAX - 2));
        assert!(!seen.insert(2 * REACH + 7), "too old to tell");
    }

    #[test]
    fn agrees_with_a_plain_set_in_order() {
        let (mut seen, mut set) = (Seen::default(), std::collections::HashSet::new());
        let mut state = 1_u32;
        let mut high = 1;
        for _ in 0..20_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let id = (high + 2 * (state >> 16 & 63)).saturating_sub(64) | 1;
            high = high.max(id);
            assert_eq!(seen.insert(id), set.insert(id), "id {id}");
        }
    }
}
