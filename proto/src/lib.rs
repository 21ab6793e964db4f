//! Pointsman's wire contract.
//!
//! Holds `.proto` files and the code generated from them, nothing else. It is empty while every role runs in one
//! process and the only wires are HTTP: the first package arrives together with the first worker that speaks gRPC.
