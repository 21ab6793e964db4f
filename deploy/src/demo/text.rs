//! What a demo replica says: sentences about itself and about the prompt, cut into tokens.

use control::rng::{Rng, hash_bytes};

/// The tokens of an answer to `prompt`, without end: whoever asks takes as many as the answer has. Each begins with the
/// space before it, as a real vocabulary's do.
pub(super) struct Words {
    rng: Rng,
    topics: Vec<String>,
    queue: std::collections::VecDeque<String>,
    begun: bool,
}

impl Words {
    pub(super) fn new(prompt: &str, seed: u64) -> Self {
        let topics = topics(prompt);
        Self {
            rng: Rng::new(hash_bytes(seed, prompt.as_bytes())),
            topics,
            queue: std::collections::VecDeque::new(),
            begun: false,
        }
    }

    fn sentence(&mut self) {
        let sentence = match (self.begun, self.topics.is_empty()) {
            (false, true) => OPENING_WITHOUT_TOPIC,
            (false, false) => pick(&mut self.rng, &OPENINGS),
            (true, true) => pick(&mut self.rng, &ABOUT_ITSELF),
            (true, false) if self.rng.below(2) == 0 => pick(&mut self.rng, &ABOUT_ITSELF),
            (true, false) => pick(&mut self.rng, &ABOUT_TOPICS),
        };
        for word in sentence.split(' ') {
            let word = match word.strip_prefix('@') {
                Some(after) => {
                    let at = self.rng.below(self.topics.len() as u64);
                    let topic = usize::try_from(at).ok().and_then(|at| self.topics.get(at));
                    format!("{}{after}", topic.map_or("that", String::as_str))
                }
                None => word.to_owned(),
            };
            let space = if self.begun { " " } else { "" };
            self.begun = true;
            self.queue.push_back(format!("{space}{word}"));
        }
    }
}

impl Iterator for Words {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        if self.queue.is_empty() {
            self.sentence();
        }
        self.queue.pop_front()
    }
}

fn pick(rng: &mut Rng, sentences: &[&'static str]) -> &'static str {
    let at = usize::try_from(rng.below(sentences.len() as u64)).unwrap_or(0);
    sentences.get(at).copied().unwrap_or(OPENING_WITHOUT_TOPIC)
}

/// The prompt's words that are worth repeating: long enough to mean something, each once, a few of them.
fn topics(prompt: &str) -> Vec<String> {
    // Enough that a paragraph does not repeat itself.
    const TOPICS_MAX: usize = 8;
    let mut topics: Vec<String> = Vec::new();
    for word in prompt.split(|c: char| !c.is_alphanumeric()) {
        let length = word.chars().count();
        let known = topics.iter().any(|topic| topic.eq_ignore_ascii_case(word));
        if (4..=24).contains(&length) && !known {
            topics.push(word.to_owned());
            if topics.len() == TOPICS_MAX {
                break;
            }
        }
    }
    topics
}

const OPENING_WITHOUT_TOPIC: &str =
    "Hello from a demo replica: there is no model behind me, only a clock and a list of sentences.";

const OPENINGS: [&str; 3] = [
    "You asked about @ and I would gladly explain @ to you, but I am a demo replica without a model.",
    "A real model would now think about @ and perhaps about @, while this demo replica only pretends to.",
    "Your words about @ arrived safely, and this demo replica answers them at the pace of a real one.",
];

const ABOUT_TOPICS: [&str; 4] = [
    "Whether @ goes well with @ is a question for somebody who has read more than I have.",
    "If @ matters to you, ask a replica that has weights.",
    "I can repeat @ as often as you like, which is more than I understand of it.",
    "Nobody here knows much about @, yet the tokens keep their rhythm.",
];

const ABOUT_ITSELF: [&str; 5] = [
    "Every word you see left this process one gap after the one before.",
    "Stop me in the middle of a sentence and watch another replica take the next request.",
    "My usage is counted exactly, one token for each piece you received.",
    "The same prompt and the same seed make me say the same things again.",
    "A gateway stands between us and decides which of my siblings you meet.",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_prompt_says_the_same_and_another_does_not() {
        let say = |prompt: &str, seed| Words::new(prompt, seed).take(80).collect::<String>();
        assert_eq!(say("tell me about railways", 1), say("tell me about railways", 1));
        assert_ne!(say("tell me about railways", 1), say("tell me about bridges", 1));
        assert_ne!(say("tell me about railways", 1), say("tell me about railways", 2));
    }

    #[test]
    fn an_answer_takes_up_words_of_the_prompt() {
        let said = Words::new("the signal at Clapham", 0).take(20).collect::<String>();
        assert!(said.contains("signal") || said.contains("Clapham"), "{said}");
        assert!(!said.contains('@'), "{said}");
        assert!(Words::new("", 0).take(200).collect::<String>().starts_with("Hello from a demo"));
    }
}
