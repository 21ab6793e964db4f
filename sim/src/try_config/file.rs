//! Traffic from a file: three forms, told apart by their first line, and every mistake by its line.
//!
//! | form | first line | model, tenant |
//! |---|---|---|
//! | ours | `at_ms,model,tenant,prompt,output` | as named |
//! | Mooncake | a JSON object with `timestamp` (ms), `input_length`, `output_length` | spread over all |
//! | Azure | `TIMESTAMP,ContextTokens,GeneratedTokens` | spread over all |
//!
//! A file that is longer than a trial is cut, a shorter one begins again: what a configuration does under trouble shows
//! only while somebody asks. No CSV library: no field of these forms is ever quoted.

use control::rng::Rng;
use serde_json::Value;

use super::subject::{Caller, Subject};
use super::traffic::{Traffic, ask, callers_of};

/// Requests of one trial. More is asked of a real gateway than of a simulated one.
const REQUESTS_MAX: usize = 60_000;
/// Bytes of a file: a day of the published traces.
pub(super) const BYTES_MAX: u64 = 256 << 20;
/// Tokens of a prompt or an answer: no model takes more.
const TOKENS_MAX: u64 = 10_000_000;

/// One line, whatever its form.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    at_ms: f64,
    /// Model and tenant, where the form has them.
    named: Option<(String, String)>,
    prompt: u64,
    output: u64,
}

#[derive(Clone, Copy)]
enum Form {
    Ours,
    Mooncake,
    Azure,
}

/// Reads the traffic for so many seconds.
///
/// # Errors
/// `FILE:LINE: ` and what is wrong there.
pub(super) fn read(
    file: &str,
    text: &str,
    subject: &Subject,
    seconds: u64,
    rng: &mut Rng,
) -> Result<Traffic, String> {
    let rows = rows(file, text)?;
    let first = rows.iter().map(|(_, row)| row.at_ms).fold(f64::INFINITY, f64::min);
    let last = rows.iter().map(|(_, row)| row.at_ms).fold(0.0, f64::max);
    let lasts = (last - first).max(1_000.0);
    let end = seconds as f64 * 1_000.0;
    let (mut asks, mut round) = (Vec::new(), 0.0);
    while round < end {
        for (line, row) in &rows {
            let at = round + row.at_ms - first;
            if at >= end {
                continue;
            }
            let at_us = (at * 1_000.0) as u64;
            let (tenant, caller, model) =
                whose(row, subject, rng).map_err(|why| format!("{file}:{line}: {why}"))?;
            asks.push(ask(at_us, (tenant, &caller, model), row.prompt, row.output));
            if asks.len() > REQUESTS_MAX {
                return Err(format!(
                    "{file}: more than {REQUESTS_MAX} requests in {seconds} s; thin it out"
                ));
            }
        }
        round += lasts + 1.0;
    }
    let rounds = if lasts < end { " (it begins again until the trial is over)" } else { "" };
    let described = format!(
        "{file}: {} requests in {seconds} s, {:.2}/s{rounds}; all stream, none in sessions",
        asks.len(),
        asks.len() as f64 / seconds as f64,
    );
    Ok(Traffic { asks, described: vec![described] })
}

/// The rows with their line numbers.
fn rows(file: &str, text: &str) -> Result<Vec<(usize, Row)>, String> {
    let mut lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()).peekable();
    let Some((line, head)) = lines.peek().copied() else {
        return Err(format!("{file}:1: the file is empty"));
    };
    let form = form_of(head.trim_start_matches('\u{feff}'))
        .map_err(|why| format!("{file}:{line}: {why}"))?;
    if !matches!(form, Form::Mooncake) {
        lines.next();
    }
    let mut rows = Vec::new();
    for (line, text) in lines {
        let row = match form {
            Form::Ours => ours(text),
            Form::Mooncake => mooncake(text),
            Form::Azure => azure(text),
        };
        rows.push((line, row.map_err(|why| format!("{file}:{line}: {why}"))?));
    }
    if rows.is_empty() { Err(format!("{file}:1: there is no request in it")) } else { Ok(rows) }
}

fn form_of(head: &str) -> Result<Form, String> {
    let columns: Vec<String> = head.split(',').map(|c| c.trim().to_ascii_lowercase()).collect();
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    match columns.as_slice() {
        ["at_ms", "model", "tenant", "prompt", "output"] => Ok(Form::Ours),
        ["timestamp", "contexttokens", "generatedtokens"] => Ok(Form::Azure),
        _ if head.trim_start().starts_with('{') => Ok(Form::Mooncake),
        _ => Err("neither `at_ms,model,tenant,prompt,output`, nor \
                  `TIMESTAMP,ContextTokens,GeneratedTokens`, nor lines of JSON with timestamp, \
                  input_length and output_length"
            .to_owned()),
    }
}

fn ours(line: &str) -> Result<Row, String> {
    let cells = cells::<5>(line)?;
    Ok(Row {
        at_ms: instant("at_ms", cells[0])?,
        named: Some((cells[1].to_owned(), cells[2].to_owned())),
        prompt: tokens("prompt", cells[3])?,
        output: tokens("output", cells[4])?,
    })
}

fn azure(line: &str) -> Result<Row, String> {
    let cells = cells::<3>(line)?;
    Ok(Row {
        at_ms: clock(cells[0])?,
        named: None,
        prompt: tokens("ContextTokens", cells[1])?,
        output: tokens("GeneratedTokens", cells[2])?,
    })
}

fn mooncake(line: &str) -> Result<Row, String> {
    let row: Value = serde_json::from_str(line).map_err(|why| format!("no JSON: {why}"))?;
    let number = |name: &str| {
        let value = row.get(name).ok_or_else(|| format!("{name} is missing"))?;
        value.as_u64().ok_or_else(|| format!("{name} is {value}, not a whole number"))
    };
    let length = |name: &str| {
        let length = number(name)?;
        if length > TOKENS_MAX {
            Err(format!("{name} is {length}: no model takes more than {TOKENS_MAX}"))
        } else {
            Ok(length)
        }
    };
    Ok(Row {
        at_ms: number("timestamp")? as f64,
        named: None,
        prompt: length("input_length")?,
        output: length("output_length")?,
    })
}

fn cells<const N: usize>(line: &str) -> Result<[&str; N], String> {
    let cells: Vec<&str> = line.split(',').map(str::trim).collect();
    let found = cells.len();
    cells.try_into().map_err(|_| format!("{found} columns, not {N}"))
}

fn instant(name: &str, cell: &str) -> Result<f64, String> {
    let at: Option<f64> = cell.parse().ok().filter(|at: &f64| at.is_finite() && *at >= 0.0);
    at.ok_or_else(|| format!("{name} is {cell:?}, not an instant in milliseconds"))
}

fn tokens(name: &str, cell: &str) -> Result<u64, String> {
    let count = cell.parse().ok().filter(|count: &u64| *count <= TOKENS_MAX);
    count.ok_or_else(|| format!("{name} is {cell:?}, not a number of tokens"))
}

/// `2023-11-16 18:17:03.9799600`, as milliseconds since some midnight: only differences count.
fn clock(cell: &str) -> Result<f64, String> {
    let read = || {
        let (date, time) = cell.split_once([' ', 'T'])?;
        let mut date = date.split('-').map(|part| part.parse::<u64>().ok());
        let (_year, month, day) = (date.next()??, date.next()??, date.next()??);
        let mut time = time.trim_end_matches('Z').trim_end_matches("+00:00").split(':');
        let (hour, minute): (u64, u64) = (time.next()?.parse().ok()?, time.next()?.parse().ok()?);
        let second: f64 = time.next()?.parse().ok()?;
        let in_range =
            month <= 12 && day <= 31 && hour < 24 && minute < 60 && (0.0..61.0).contains(&second);
        // A month counts as 31 days: a trace that spans two is shifted there, and no request lost.
        let minutes = ((month * 31 + day) * 24 + hour) * 60 + minute;
        in_range.then_some(minutes as f64 * 60_000.0 + second * 1_000.0)
    };
    read().ok_or_else(|| format!("TIMESTAMP is {cell:?}, not like 2023-11-16 18:17:03.97"))
}

/// Tenant, caller and model of a row: as it names them, or drawn.
fn whose(row: &Row, subject: &Subject, rng: &mut Rng) -> Result<(u32, Caller, u32), String> {
    let Some((model, tenant)) = &row.named else {
        let model = rng.below(subject.models.len() as u64) as u32;
        return Ok(drawn(subject, model, rng));
    };
    let known = |names: &[&str]| names.join(", ");
    let at = subject.models.iter().position(|name| name == model).ok_or_else(|| {
        let names: Vec<&str> = subject.models.iter().map(String::as_str).collect();
        format!("no model {model:?} in the configuration; there are: {}", known(&names))
    })?;
    let payer = subject.tenants.iter().position(|own| own.name == *tenant).ok_or_else(|| {
        let names: Vec<&str> = subject.tenants.iter().map(|own| own.name.as_str()).collect();
        format!("no tenant {tenant:?} who may call; there are: {}", known(&names))
    })?;
    let callers = &subject.tenants[payer].callers;
    let caller = callers[rng.below(callers.len().max(1) as u64) as usize].clone();
    Ok((payer as u32, caller, at as u32))
}

fn drawn(subject: &Subject, model: u32, rng: &mut Rng) -> (u32, Caller, u32) {
    let callers = callers_of(subject, model);
    match callers.is_empty() {
        true => (subject.tenants.len() as u32, Caller { user: None, models: Vec::new() }, model),
        false => {
            let (tenant, caller) = callers[rng.below(callers.len() as u64) as usize];
            (tenant as u32, caller.clone(), model)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_told_by_its_first_line() {
        let ours = rows("a", "at_ms,model,tenant,prompt,output\n1.5,m,t,20,30\n").expect("ours");
        assert_eq!(ours[0].0, 2);
        assert_eq!(ours[0].1.named, Some(("m".to_owned(), "t".to_owned())));
        let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n\
                     2023-11-16 18:17:04.0319600,3180,8\r\n";
        let azure = rows("a", azure).expect("azure");
        assert!((azure[1].1.at_ms - azure[0].1.at_ms - 52.0).abs() < 0.01);
        let mooncake =
            r#"{"timestamp": 7, "input_length": 6758, "output_length": 500, "hash_ids": []}"#;
        let mooncake = rows("a", mooncake).expect("mooncake");
        assert_eq!((mooncake[0].1.prompt, mooncake[0].1.output), (6_758, 500));
    }

    #[test]
    fn a_bad_line_is_named_by_its_number() {
        let cases = [
            ("", "f:1: the file is empty"),
            ("what,ever\n1,2\n", "f:1: neither"),
            (
                "at_ms,model,tenant,prompt,output\n1,m,t,2,3\n\n2,m,t,-2,3\n",
                "f:4: prompt is \"-2\"",
            ),
            ("at_ms,model,tenant,prompt,output\nNaN,m,t,2,3\n", "f:2: at_ms is \"NaN\""),
            ("at_ms,model,tenant,prompt,output\n1,m,t\n", "f:2: 3 columns, not 5"),
            ("{\"timestamp\": 1}\n", "f:1: input_length is missing"),
            ("{\"timestamp\": 1, \"input_length\": 2, \"output_length\": 3}\n{]\n", "f:2: no JSON"),
            (
                "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-13-01 00:00:00,1,2\n",
                "f:2: TIMESTAMP is",
            ),
        ];
        for (text, expected) in cases {
            let why = rows("f", text).expect_err(expected);
            assert!(why.starts_with(expected), "{why}");
        }
    }
}
