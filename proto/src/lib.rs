//! Pointsman's wire contract: what its processes say to each other. The `.proto` files are the truth; the code is made
//! of them when the crate is built, by `build.rs`, without `protoc`.
//!
//! Packages carry a version and only ever grow: a field's number and meaning never change, a field that is gone is
//! reserved. So an older process and a newer one understand each other: what one does not know, it passes over.
//!
//! gRPC and QUIC carry the same messages. This crate holds them, gRPC's clients and servers, and nothing else: what they
//! mean to the plane is said in `transport::convert`.

/// Between Pointsman and the processes that run models.
pub mod inference {
    /// Version 1.
    #[allow(missing_docs, clippy::all, reason = "made by prost and tonic from the .proto")]
    pub mod v1 {
        tonic::include_proto!("pointsman.inference.v1");
    }
}

/// Between the roles that serve and the auth role.
pub mod auth {
    /// Version 1.
    #[allow(missing_docs, clippy::all, reason = "made by prost and tonic from the .proto")]
    pub mod v1 {
        tonic::include_proto!("pointsman.auth.v1");
    }
}

/// Between clients, the gateway role and the chat role.
pub mod chat {
    /// Version 1.
    #[allow(missing_docs, clippy::all, reason = "made by prost and tonic from the .proto")]
    pub mod v1 {
        tonic::include_proto!("pointsman.chat.v1");
    }
}

/// Between services beside the gateway and the ledger.
pub mod quota {
    /// Version 1.
    #[allow(missing_docs, clippy::all, reason = "made by prost and tonic from the .proto")]
    pub mod v1 {
        tonic::include_proto!("pointsman.quota.v1");
    }
}

/// All files as an encoded `FileDescriptorSet`, for servers that offer reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use prost::Message;

    use super::inference::v1::{Load, StreamInferenceResponse};

    #[test]
    fn a_chunk_survives_the_wire_and_what_is_unknown_is_passed_over() {
        let load = Load { queued: 1, running: 2, running_max: 4, kv_used_permille: Some(500) };
        let chunk = StreamInferenceResponse {
            seq: 7,
            token_count: 2,
            token_ids: vec![1, 70_000],
            text: "\u{4f60}".to_owned(),
            load: Some(load),
            ..StreamInferenceResponse::default()
        };
        let mut bytes = chunk.encode_to_vec();
        assert_eq!(StreamInferenceResponse::decode(&*bytes).unwrap(), chunk);
        // Field 1000, of a later version: a varint.
        bytes.extend([0xc0, 0x3e, 5]);
        assert_eq!(StreamInferenceResponse::decode(&*bytes).unwrap(), chunk);
    }

    #[test]
    fn the_descriptors_name_the_services() {
        for name in ["InferenceService", "ChatService", "AuthService"] {
            let name = name.as_bytes();
            assert!(super::DESCRIPTORS.windows(name.len()).any(|window| window == name));
        }
    }
}
