//! The answers, from a running server or from a directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use control::id::{AccountId, RequestId};
use control::plane::{ControlPlane, Input};

use super::words;
use super::{Question, Said};
use crate::driver::Driver;
use crate::inspect::{InspectError, Inspection};

/// Names of accounts, for people. Kept in the data directory, so that a stopped one can be read too.
pub type AccountNames = BTreeMap<AccountId, String>;

/// What a running server answers from.
pub struct Running {
    driver: Arc<Driver>,
    dir: PathBuf,
}

impl Running {
    /// Answers for `driver`, whose journal is in `dir`.
    #[must_use]
    pub fn new(driver: Arc<Driver>, dir: PathBuf) -> Self {
        Self { driver, dir }
    }

    /// Answers. Blocks while a journal is replayed.
    #[must_use]
    pub fn answer(&self, question: &Question) -> Said {
        match question {
            Question::Status { json } => {
                let view = self.driver.look(ControlPlane::view);
                Said::ok(if *json { words::json(&view) } else { words::status(&view, true) })
            }
            Question::Drain { endpoint, on } => self.drain(endpoint, *on),
            Question::Quota { json } => {
                let audit = self.driver.look(ControlPlane::audit);
                let names = names(&self.dir);
                Said::ok(if *json {
                    words::quota_json(&audit, &names)
                } else {
                    words::quota(&audit, &names)
                })
            }
            Question::Explain { .. } | Question::Verify | Question::Audit => {
                inspect(&self.dir, question)
            }
        }
    }

    fn drain(&self, endpoint: &str, on: bool) -> Said {
        let view = self.driver.look(ControlPlane::view);
        if !view.endpoints.iter().any(|known| &*known.name == endpoint) {
            let names: Vec<_> = view.endpoints.iter().map(|known| &*known.name).collect();
            let names = names.join(", ");
            return Said::not_ok(format!("no endpoint is named {endpoint:?}; there are: {names}"));
        }
        let position = self.driver.submit(Input::Drain { endpoint: endpoint.into(), on });
        tracing::info!(instance_id = endpoint, position, "drain: {on}");
        Said::ok(match on {
            true => format!("{endpoint} gets no new requests; what runs there finishes"),
            false => format!("{endpoint} gets requests again"),
        })
    }
}

/// Answers from a stopped directory, without changing it.
#[must_use]
pub fn answer_from_directory(dir: &Path, question: &Question) -> Said {
    inspect(dir, question)
}

fn inspect(dir: &Path, question: &Question) -> Said {
    match try_inspect(dir, question) {
        Ok(said) => said,
        Err(error) => Said::not_ok(error.to_string()),
    }
}

fn try_inspect(dir: &Path, question: &Question) -> Result<Said, InspectError> {
    let inspection = Inspection::open(dir)?;
    Ok(match question {
        Question::Status { json } => {
            let view = inspection.plane()?.view();
            Said::ok(if *json { words::json(&view) } else { words::status(&view, false) })
        }
        Question::Drain { .. } => Said::not_ok(
            "no server runs on this data directory: draining is for a running one (is --data right?)",
        ),
        Question::Explain { request } => match RequestId::parse(request) {
            Some(request) => {
                let explained = inspection.explain(request)?;
                Said::ok(words::replace_accounts(&explained.to_string(), &names(dir)))
            }
            None => Said::not_ok(format!(
                "{request:?} is not a request id; it looks like req_1-2a, as the response header x-request-id says"
            )),
        },
        Question::Verify => words::verified(&inspection.replay(|_, _| {})?),
        Question::Quota { json } => {
            let audit = inspection.plane()?.audit();
            let names = names(dir);
            Said::ok(if *json {
                words::quota_json(&audit, &names)
            } else {
                words::quota(&audit, &names)
            })
        }
        Question::Audit => words::audited(&inspection.audit()?, &names(dir)),
    })
}

fn names(dir: &Path) -> AccountNames {
    crate::accounts::read_names(dir)
}
