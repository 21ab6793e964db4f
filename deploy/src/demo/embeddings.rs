//! Vectors without a model: texts that share words get vectors that point the same way.
//!
//! Each word has a fixed random direction; a text's vector is the sum of its words' directions, at unit length (random
//! indexing: Kanerva, Kristoferson and Holst, 2000). That is enough for a search over a few notes to look right.

use core::fmt::Write;

use serde::Deserialize;
use serde_json::{Value, json};

use control::rng::{Rng, hash_bytes};
use control::units::Tokens;

/// A request for embeddings.
#[derive(Debug, Deserialize)]
pub(super) struct Ask {
    pub(super) model: Option<String>,
    input: Input,
    dimensions: Option<usize>,
    #[serde(default)]
    encoding_format: Encoding,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u64>),
    ManyIds(Vec<Vec<u64>>),
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Encoding {
    #[default]
    Float,
    /// 32-bit floats, little-endian: what OpenAI's own clients ask for.
    Base64,
}

/// What OpenAI allows per request, and about what real models have.
const INPUTS_MAX: usize = 2_048;
const DIMENSIONS: usize = 256;
const DIMENSIONS_MAX: usize = 4_096;

impl Ask {
    /// # Errors
    /// What is wrong with the request, for its sender.
    pub(super) fn read(body: &[u8]) -> Result<Self, String> {
        let ask: Self = serde_json::from_slice(body)
            .map_err(|error| format!("the body is no embeddings request: {error}"))?;
        let count = ask.texts().len();
        if !(1..=INPUTS_MAX).contains(&count) {
            return Err(format!("'input' must hold 1 to {INPUTS_MAX} texts"));
        }
        if ask.dimensions.is_some_and(|wanted| !(1..=DIMENSIONS_MAX).contains(&wanted)) {
            return Err(format!("'dimensions' must be 1 to {DIMENSIONS_MAX}"));
        }
        Ok(ask)
    }

    pub(super) fn answer(&self, prompt: Tokens, no_usage: bool) -> Value {
        let dimensions = self.dimensions.unwrap_or(DIMENSIONS);
        let embed = |(index, text): (usize, String)| {
            let vector = vector(&text, dimensions);
            let embedding = match self.encoding_format {
                Encoding::Float => json!(vector),
                Encoding::Base64 => json!(base64(&vector)),
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        };
        let data: Vec<Value> = self.texts().into_iter().enumerate().map(embed).collect();
        let mut answer = json!({"object": "list", "model": self.model, "data": data});
        if !no_usage {
            answer["usage"] = json!({"prompt_tokens": prompt.0, "total_tokens": prompt.0});
        }
        answer
    }

    /// Token ids stand for words we do not know: their numbers do.
    fn texts(&self) -> Vec<String> {
        let joined = |ids: &Vec<u64>| {
            ids.iter().fold(String::new(), |mut text, id| {
                let _ = write!(text, "{id} ");
                text
            })
        };
        match &self.input {
            Input::Text(text) => vec![text.clone()],
            Input::Texts(texts) => texts.clone(),
            Input::Ids(ids) if ids.is_empty() => Vec::new(),
            Input::Ids(ids) => vec![joined(ids)],
            Input::ManyIds(lists) => lists.iter().map(joined).collect(),
        }
    }
}

fn vector(text: &str, dimensions: usize) -> Vec<f32> {
    let mut sum = vec![0.0_f64; dimensions];
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    // The whole text adds a little of its own, so that no two texts are quite the same and none is empty.
    let all = [(text.to_owned(), 0.1)];
    for (word, weight) in words.map(|word| (word.to_lowercase(), 1.0)).chain(all) {
        let mut rng = Rng::new(hash_bytes(0, word.as_bytes()));
        sum.iter_mut().for_each(|value| *value += weight * (rng.unit() - 0.5));
    }
    let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
    sum.into_iter().map(|value| (value / length) as f32).collect()
}

/// RFC 4648, section 4, of the vector's bytes.
fn base64(vector: &[f32]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for position in 0..4 {
            let six = (word >> (18 - 6 * position)) & 63;
            let letter = ALPHABET.get(six as usize).copied().map_or('=', char::from);
            out.push(if position <= group.len() { letter } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_share_words_are_nearer_than_others() {
        let near = |one: &str, two: &str| -> f32 {
            vector(one, 256).iter().zip(vector(two, 256)).map(|(a, b)| a * b).sum()
        };
        assert!((near("red signal", "red signal") - 1.0).abs() < 1e-5);
        assert!(near("red signal ahead", "a red signal") > near("red signal ahead", "green tea"));
        assert_eq!(vector("", 8).len(), 8);
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        // 1.0 is 00 00 80 3f.
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, 1.0]), "AACAPwAAgD8=");
        assert_eq!(base64(&[1.0, 1.0, 1.0]), "AACAPwAAgD8AAIA/");
        assert_eq!(base64(&[]), "");
    }
}
