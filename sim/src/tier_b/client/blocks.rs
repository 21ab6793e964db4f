//! A body as it comes, cut where an event ends. Pieces may part a letter's bytes: only whole events are text.

/// What has come and is not an event yet.
#[derive(Default)]
pub(super) struct Blocks(Vec<u8>);

impl Blocks {
    pub(super) fn push(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }
}

impl Iterator for Blocks {
    type Item = String;

    /// The next whole event, with the empty line that ends it.
    fn next(&mut self) -> Option<String> {
        let end = self.0.windows(2).position(|two| two == b"\n\n")? + 2;
        let event: Vec<u8> = self.0.drain(..end).collect();
        Some(String::from_utf8_lossy(&event).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_that_two_pieces_share_is_one_letter() {
        let whole = "data: 马\n\ndata: é\n\nda".as_bytes();
        for cut in 0..whole.len() {
            let mut blocks = Blocks::default();
            let mut events = Vec::new();
            for piece in [&whole[..cut], &whole[cut..]] {
                blocks.push(piece);
                events.extend(blocks.by_ref());
            }
            assert_eq!(events, ["data: 马\n\n", "data: é\n\n"], "cut at {cut}");
        }
    }
}
