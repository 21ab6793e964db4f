//! Where spans go, from the file and from OpenTelemetry's own variables.

use super::*;

fn tracing(text: &str, vars: &[(&str, &str)]) -> Tracing {
    parsed(&format!("version: 1\n{text}"), vars).unwrap().config.monitoring.tracing
}

fn endpoint(tracing: &Tracing) -> Option<&str> {
    tracing.endpoint.as_ref().map(Collector::as_str)
}

#[test]
fn the_variables_of_the_standard_go_before_the_file() {
    let file =
        "monitoring: {tracing: {endpoint: 'http://a:4317/', service_name: s, sample_ratio: 0.5}}";
    let said = tracing(file, &[]);
    assert_eq!((endpoint(&said), said.service_name.as_deref()), (Some("http://a:4317"), Some("s")));
    assert_eq!((said.sampler, said.sample_ratio.as_f64()), (Sampler::ParentOrRatio, 0.5));
    let vars = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://b:4317"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://c:443"),
        ("OTEL_SERVICE_NAME", "t"),
        ("OTEL_TRACES_SAMPLER", "traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", ".25"),
    ];
    let said = tracing(file, &vars);
    assert_eq!((endpoint(&said), said.service_name.as_deref()), (Some("https://c:443"), Some("t")));
    assert_eq!((said.sampler, said.sample_ratio.as_f64()), (Sampler::Ratio, 0.25));
    assert_eq!(Tracing::of_env(&vars.into_iter().collect()).unwrap(), (said, vec![]));
}

#[test]
fn nothing_said_is_no_traces() {
    assert_eq!(endpoint(&tracing("", &[])), None);
    let elsewhere = [("REDIS_ADDR", "nonsense"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "")];
    let (said, warnings) = Tracing::of_env(&elsewhere.into_iter().collect()).unwrap();
    assert_eq!((endpoint(&said), warnings), (None, vec![]), "no variable of another part is read");
}

#[test]
fn a_collector_that_is_spoken_to_over_http_is_left_out_with_a_warning() {
    let vars = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://b:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
    ];
    let (said, warnings) = Tracing::of_env(&vars.into_iter().collect()).unwrap();
    assert_eq!(endpoint(&said), None);
    let told = warnings[0].to_string();
    assert!(told.contains("OTEL_EXPORTER_OTLP_PROTOCOL") && told.contains("gRPC"), "{told}");
}

#[test]
fn what_cannot_be_says_what_to_write() {
    for (said, word) in [
        ("endpoint: '127.0.0.1:4317'", "begin with http://"),
        ("endpoint: 'http://a:14268/api/traces'", "usually 4317"),
        ("endpoint: 'http://a'", "name the port"),
        ("endpoint: 'http://u:p@a:1'", "OTEL_EXPORTER_OTLP_HEADERS"),
        ("endpoint: 'http://a b:1'", "host"),
        ("sampler: xray", "parentbased_traceidratio"),
        ("sample_ratio: 1.5", "from 0 to 1"),
        ("sample_ratio: -1", "a share like 0.05"),
        ("sample_ratio: 0.0000001", "six decimal places"),
        ("enabled: true", "unknown key"),
    ] {
        let told = errors(&format!("monitoring: {{tracing: {{{said}}}}}"));
        assert!(told.contains(word), "{said}: {told}");
    }
    let wrong = Tracing::of_env(&[("OTEL_TRACES_SAMPLER", "all")].into_iter().collect());
    assert!(wrong.unwrap_err().to_string().contains("OTEL_TRACES_SAMPLER"));
}
