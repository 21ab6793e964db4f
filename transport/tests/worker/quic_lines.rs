//! The QUIC connection itself: who is believed, what travels, silence, and peers that do not keep to the wire.
