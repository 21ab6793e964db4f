//! The protocol, in its second version: arrays of texts go in, answers come out.

use super::Command;

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// A short text: `OK`.
    Word(&'static str),
    /// A refusal, which begins with its kind.
    Error(String),
    /// A whole number.
    Number(u64),
    /// Any bytes.
    Bulk(Vec<u8>),
    /// There is no such thing.
    Nothing,
    /// Several.
    List(Vec<Self>),
}

impl Said {
    /// A text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Bulk(text.into().into_bytes())
    }

    /// Writes it down.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Word(word) => line(out, '+', word),
            Self::Error(why) => line(out, '-', why),
            Self::Number(number) => line(out, ':', &number.to_string()),
            Self::Nothing => line(out, '$', "-1"),
            Self::Bulk(bytes) => {
                line(out, '$', &bytes.len().to_string());
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Self::List(all) => {
                line(out, '*', &all.len().to_string());
                all.iter().for_each(|one| one.write(out));
            }
        }
    }
}

fn line(out: &mut Vec<u8>, kind: char, text: &str) {
    out.extend_from_slice(format!("{kind}{text}\r\n").as_bytes());
}

/// What came is no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonsense;

/// Commands as they come in. More words or bytes than any of the product's has are nonsense.
#[derive(Debug, Default)]
pub struct Commands(Vec<u8>);

const WORDS_MAX: usize = 512;
const BYTES_MAX: usize = 1 << 20;

impl Commands {
    /// Some bytes more.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next command, where it is there in full.
    ///
    /// # Errors
    /// Where what came cannot be one.
    pub fn pop(&mut self) -> Result<Option<Command>, Nonsense> {
        let mut at = 0;
        let Some(count) = number(&self.0, &mut at, b'*', WORDS_MAX)? else { return Ok(None) };
        let mut words = Vec::with_capacity(count);
        for _ in 0..count {
            let Some(length) = number(&self.0, &mut at, b'$', BYTES_MAX)? else { return Ok(None) };
            let Some(word) = self.0.get(at..at + length) else { return Ok(None) };
            words.push(word.to_vec());
            at += length + 2;
        }
        if self.0.len() < at {
            return Ok(None);
        }
        self.0.drain(..at);
        Ok(Some(words))
    }
}

/// A line that is a kind and a number; moves behind it.
fn number(bytes: &[u8], at: &mut usize, kind: u8, most: usize) -> Result<Option<usize>, Nonsense> {
    let rest = bytes.get(*at..).unwrap_or_default();
    let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else {
        return if rest.len() > 32 { Err(Nonsense) } else { Ok(None) };
    };
    let digits = rest[..end].strip_prefix(&[kind]).ok_or(Nonsense)?;
    let text = std::str::from_utf8(digits).map_err(|_| Nonsense)?;
    let number: usize = text.parse().map_err(|_| Nonsense)?;
    *at += end + 2;
    if number > most { Err(Nonsense) } else { Ok(Some(number)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_wherever_the_wire_cuts_them() {
        let bytes = b"*1\r\n$4\r\nPING\r\n*3\r\n$3\r\nSET\r\n$1\r\na\r\n$2\r\n\r\n\r\n";
        for step in 1..=bytes.len() {
            let (mut commands, mut read) = (Commands::default(), Vec::new());
            for piece in bytes.chunks(step) {
                commands.feed(piece);
                while let Ok(Some(command)) = commands.pop() {
                    read.push(command);
                }
            }
            let set = vec![b"SET".to_vec(), b"a".to_vec(), b"\r\n".to_vec()];
            assert_eq!(read, [vec![b"PING".to_vec()], set], "{step} bytes at a time");
        }
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"*x\r\n", b"*999999\r\n", &[b'*'; 64]] {
            let mut commands = Commands::default();
            commands.feed(bytes);
            assert_eq!(commands.pop(), Err(Nonsense), "{bytes:?}");
        }
    }

    #[test]
    fn answers_are_written_as_the_protocol_has_them() {
        let said =
            Said::List(vec![Said::Word("OK"), Said::Number(7), Said::text("a"), Said::Nothing]);
        let mut out = Vec::new();
        said.write(&mut out);
        assert_eq!(out, b"*4\r\n+OK\r\n:7\r\n$1\r\na\r\n$-1\r\n");
    }
}
