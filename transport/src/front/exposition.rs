//! One exposition out of two texts.
//!
//! `prometheus-client` writes OpenMetrics, where a counter's family is named without `_total`; everybody's tools
//! still read the text format 0.0.4, where it is named with it. The difference is in two comment lines a counter,
//! and a reader that gets the wrong one takes all counters for untyped.

use std::collections::BTreeSet;

use prometheus_client::encoding::text::encode_registry;
use prometheus_client::registry::Registry;

/// The text format that [`text`] writes.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The registry's metrics, then `appended`, which is already in the text format.
pub(crate) fn text(registry: &Registry, appended: &str) -> String {
    let mut open = String::new();
    encode_registry(&mut open, registry).expect("writing to a String cannot fail");
    let counters: BTreeSet<&str> = open
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut out = String::with_capacity(open.len() + appended.len());
    for line in open.lines() {
        push(&mut out, &renamed(line, &counters));
    }
    for line in appended.lines().filter(|line| !line.is_empty() && *line != "# EOF") {
        push(&mut out, line);
    }
    out
}

fn push(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}

/// A comment line about a counter, with the family's name as its samples have it.
fn renamed(line: &str, counters: &BTreeSet<&str>) -> String {
    let about = |kind: &str| {
        let (name, rest) = line.strip_prefix(kind)?.split_once(' ')?;
        counters.contains(name).then(|| format!("{kind}{name}_total {rest}"))
    };
    about("# HELP ").or_else(|| about("# TYPE ")).unwrap_or_else(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;

    #[test]
    fn counters_are_named_in_their_comments_as_in_their_samples() {
        let mut registry = Registry::default();
        registry.register("a", "How many", Counter::<u64>::default());
        registry.register("b", "How much", Gauge::<i64>::default());
        let plane = "# HELP c_total C.\n# TYPE c_total counter\nc_total 1\n# EOF\n";
        assert_eq!(
            text(&registry, plane),
            "# HELP a_total How many.\n# TYPE a_total counter\na_total 0\n\
             # HELP b How much.\n# TYPE b gauge\nb 0\n\
             # HELP c_total C.\n# TYPE c_total counter\nc_total 1\n"
        );
    }
}
