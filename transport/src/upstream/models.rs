//! Which models an endpoint serves.

use serde::Deserialize;

use control::outcome::Failure;
use control::registry::Fingerprint;
use control::units::Tokens;

use super::connect::Client;
use super::failed::Failed;
use super::target::Target;
use super::{Limits, wire};
use crate::convert;

/// A model of `GET /models`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// Its name, as requests must give it.
    pub id: String,
    /// Who made it, if said.
    pub owned_by: Option<String>,
    /// How many tokens prompt and completion may have together, if said (vLLM and SGLang do).
    pub context: Option<Tokens>,
}

/// What an endpoint says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// The models it serves, in the order it says them.
    pub models: Vec<ModelInfo>,
    /// Whose broken streams it continues, where it can.
    pub fingerprint: Option<Fingerprint>,
}

impl Client {
    /// Asks `target` which models it serves, and a worker whose streams it continues. `limits.whole_answer` bounds the wait.
    ///
    /// # Errors
    /// [`Failed`]: an endpoint that knows no such list answers with a client error (404).
    pub async fn discover(&self, target: &Target, limits: Limits) -> Result<Described, Failed> {
        if target.base_url.is_worker() {
            return wire::describe(self, target, limits).await;
        }
        let body = self.get(target, "/models", limits).await?.body;
        let list: List = serde_json::from_slice(&body)
            .map_err(|_| Failed::new(Failure::Garbage, "not a list of models"))?;
        let models = list.data.into_iter().map(Entry::info).collect();
        let fingerprint = target.continues.as_deref().and_then(convert::fingerprint);
        Ok(Described { models, fingerprint })
    }
}

#[derive(Deserialize)]
struct List {
    data: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    id: String,
    #[serde(default)]
    owned_by: Option<String>,
    #[serde(default)]
    max_model_len: Option<u64>,
}

impl Entry {
    fn info(self) -> ModelInfo {
        let context = self.max_model_len.map(Tokens);
        ModelInfo { id: self.id, owned_by: self.owned_by, context }
    }
}
