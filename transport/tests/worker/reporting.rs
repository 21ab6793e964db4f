//! What workers say of their load, as it reaches picks: over real connections, true and false.

use proto::inference::v1::{Load, StreamInferenceResponse as Chunk};
use serde_json::json;

use crate::lying::{chunk, liar};
use crate::world::{Worker, World};

/// Answers with one word, and says with it how busy it is.
fn busy(load: Load) -> Worker {
    let word = Chunk { load: Some(load), ..chunk(0, "a", "").unwrap() };
    let last = Chunk { load: Some(load), ..chunk(1, "b", "stop").unwrap() };
    liar(vec![Ok(word), Ok(last)], false)
}

fn load(queued: u32, running: u32) -> Load {
    Load { queued, running, running_max: 0, kv_used_permille: None }
}

/// Where so many requests without a session go, one after the other.
async fn places(world: &World, requests: usize, streamed: bool) -> Vec<String> {
    let mut places = Vec::new();
    for _ in 0..requests {
        let answer = world.ask("x", json!({"stream": streamed})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        places.push(answer.header("x-pointsman-replica").to_owned());
    }
    places
}

#[tokio::test]
async fn a_worker_that_is_busy_with_the_work_of_others_gets_less() {
    for streamed in [true, false] {
        let workers = [busy(load(10, 30)), busy(load(0, 0))];
        let urls = workers.each_ref().map(Worker::url);
        let world = World::before(&urls, "routing: {load_balancer: least_load}").await;
        let places = places(&world, 12, streamed).await;
        let to_busy = places.iter().filter(|place| **place == "w0").count();
        // It is asked once, and says so with its first words.
        assert!(to_busy <= 1, "{places:?}");
        let metrics = world.get("/metrics").await;
        let others = "pointsman_endpoint_reported_others{instance=\"w0\"}";
        let told = metrics.lines().find_map(|line| line.strip_prefix(others)).unwrap();
        let told: u32 = told.trim().parse().unwrap();
        assert!(to_busy == 0 || (38..=40).contains(&told), "{told}");
        assert!(
            metrics.contains("pointsman_endpoint_reported_others{instance=\"w1\"} 0"),
            "{metrics}"
        );
    }
}

#[tokio::test]
async fn a_load_that_cannot_be_is_counted_and_not_believed() {
    let absurd = [
        load(u32::MAX, 0),
        load(0, u32::MAX),
        Load { kv_used_permille: Some(1_001), ..load(30, 30) },
    ];
    for said in absurd {
        let workers = [busy(said), busy(load(0, 0))];
        let urls = workers.each_ref().map(Worker::url);
        let world = World::before(&urls, "routing: {load_balancer: least_load}").await;
        let places = places(&world, 6, true).await;
        assert_eq!(places.iter().filter(|place| **place == "w0").count(), 3, "{places:?}");
        let metrics = world.get("/metrics").await;
        let refused = "pointsman_endpoint_reported_refused_total{instance=\"w0\"}";
        let told = metrics.lines().find_map(|line| line.strip_prefix(refused)).unwrap();
        assert_eq!(told.trim(), "6", "two reports in each of three answers");
        assert!(!metrics.contains("reported_refused_total{instance=\"w1\"}"), "{metrics}");
    }
}
