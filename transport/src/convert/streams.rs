//! Streams, as the wire tells of them.

use control::units::Tokens;
use proto::chat::v1::Resumed as ResumedSaid;

use crate::exchange::Resumed;

/// A seam.
pub(crate) fn resumed(said: ResumedSaid) -> Resumed {
    Resumed { from: Tokens(said.from_token), replica: said.replica }
}

/// The other way round.
pub(crate) fn resumed_said(resumed: Resumed) -> ResumedSaid {
    ResumedSaid { from_token: resumed.from.0, replica: resumed.replica }
}
