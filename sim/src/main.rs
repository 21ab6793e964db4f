//! `pointsman-sim`.
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let from: u64 = args.get(1).and_then(|a| a.parse().ok()).unwrap_or(0);
    let count: u64 = args.get(2).and_then(|a| a.parse().ok()).unwrap_or(1);
    let mut total = (0, 0, 0);
    let started = std::time::Instant::now();
    let mut coverage = sim::coverage::Coverage::default();
    for seed in from..from + count {
        let plan = sim::plan::draw(seed);
        let t = std::time::Instant::now();
        let mut lines = Vec::new();
        let trace = if args.len() > 3 {
            sim::trace::Trace::written(&mut lines)
        } else {
            sim::trace::Trace::hashed()
        };
        let ran = sim::run::run(&plan, trace);
        if let Some(path) = args.get(3) {
            std::fs::write(path, &lines).unwrap();
            std::fs::write(format!("{path}.plan"), plan.to_text()).unwrap();
        }
        coverage.unite(&ran.coverage);
        total.0 += ran.outcome.events;
        total.1 += ran.outcome.steps;
        total.2 += ran.outcome.requests;
        if let Some(violation) = ran.outcome.violation {
            println!("seed {seed}: {violation}");
        } else if count < 20 {
            println!(
                "seed {seed}: ok {:016x} {} events {} steps {} requests {:?} g{} r{}",
                ran.outcome.hash,
                ran.outcome.events,
                ran.outcome.steps,
                ran.outcome.requests,
                t.elapsed(),
                plan.topology.gateways.len(),
                plan.topology.replicas.len()
            );
        }
    }
    println!("{total:?} in {:?}; missing {:?}", started.elapsed(), coverage.missing());
}
