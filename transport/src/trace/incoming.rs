//! What a caller says of its trace: `traceparent` and `tracestate` (W3C Trace Context).

use std::sync::Arc;

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";

/// A `traceparent` of version 00 has 55 characters; later ones may append.
const PARENT_CHARS: core::ops::RangeInclusive<usize> = 55..=128;
/// Vendors' members: as much as the standard asks everybody to pass on.
const STATE_CHARS_MAX: usize = 512;

/// What a caller said, as it said it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Incoming {
    parent: Option<Box<str>>,
    state: Option<Box<str>>,
}

impl Incoming {
    /// Takes what `header` has under the names of the standard. What does not have its shape was not said.
    pub fn read<'a>(header: impl Fn(&'static str) -> Option<&'a str>) -> Self {
        let shaped = |text: &&str| {
            let all = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            all && PARENT_CHARS.contains(&text.len())
        };
        let Some(parent) = header(PARENT).filter(shaped) else { return Self::default() };
        let plain = |text: &&str| {
            let visible = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
            visible && !text.is_empty() && text.len() <= STATE_CHARS_MAX
        };
        Self { parent: Some(parent.into()), state: header(STATE).filter(plain).map(Into::into) }
    }

    /// Itself, unless nothing was said.
    pub(super) fn some(self) -> Option<Arc<Self>> {
        self.parent.is_some().then(|| Arc::new(self))
    }

    /// Name and text of each header.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let parent = self.parent.as_deref().map(|text| (PARENT, text));
        parent.into_iter().chain(self.state.as_deref().map(|text| (STATE, text)))
    }

    /// The caller's span; an invalid one where it named none, or one that cannot be.
    pub(super) fn context(&self) -> SpanContext {
        self.parent.as_deref().and_then(|text| self.parsed(text)).unwrap_or(SpanContext::NONE)
    }

    fn parsed(&self, parent: &str) -> Option<SpanContext> {
        let mut parts = parent.split('-');
        let mut part = |digits: usize| parts.next().filter(|part| part.len() == digits);
        let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        let version = u8::from_str_radix(version, 16).ok()?;
        let flags = u8::from_str_radix(flags, 16).ok()?;
        // 255 is no version, and version 0 ends here.
        if version == 255 || (version == 0 && parts.next().is_some()) {
            return None;
        }
        let state = self.state.as_deref().and_then(|text| text.parse::<TraceState>().ok());
        let context = SpanContext::new(
            TraceId::from_hex(trace).ok()?,
            SpanId::from_hex(span).ok()?,
            TraceFlags::new(flags & TraceFlags::SAMPLED.to_u8()),
            true,
            state.unwrap_or_default(),
        );
        context.is_valid().then_some(context)
    }

    /// What to tell whoever is called from within a span.
    pub(super) fn from_context(context: &SpanContext) -> Self {
        if !context.is_valid() {
            return Self::default();
        }
        let (trace, span) = (context.trace_id(), context.span_id());
        let flags = context.trace_flags().to_u8();
        let state = context.trace_state().header();
        Self {
            parent: Some(format!("00-{trace}-{span}-{flags:02x}").into()),
            state: (!state.is_empty()).then(|| state.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn said(parent: &str, state: Option<&str>) -> Incoming {
        Incoming::read(|name| if name == PARENT { Some(parent) } else { state })
    }

    #[test]
    fn what_was_said_comes_out_as_it_went_in() {
        let context = said(GOOD, Some("vendor=1,other=2")).context();
        assert!(context.is_sampled() && context.is_remote());
        let again = Incoming::from_context(&context);
        assert_eq!(again, said(GOOD, Some("vendor=1,other=2")));
        let later = format!("cc{}-more", &GOOD[2..]);
        assert_eq!(said(&later, None).context().trace_id(), context.trace_id(), "a later version");
    }

    #[test]
    fn what_cannot_be_is_not_there() {
        for bad in ["hello", "", &GOOD[..54], &GOOD.replace('-', "_"), &"0".repeat(129)] {
            assert_eq!(said(bad, Some("a=1")), Incoming::default(), "{bad}");
        }
        let zeros = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
        let more = format!("{GOOD}-00");
        let shifted = "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01";
        for impossible in [zeros, &format!("ff{}", &GOOD[2..]), &more, shifted] {
            assert!(!said(impossible, None).context().is_valid(), "{impossible}");
        }
        let long = "x".repeat(STATE_CHARS_MAX + 1);
        assert_eq!(said(GOOD, Some(&long)), said(GOOD, None));
    }
}
