//! How long actions take, as histograms of Prometheus's with the buckets of Kata's: 1, 2, 4, … 512 ms.
//!
//! It knows neither the actions nor who measures them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::text::Text;

/// Bounds in milliseconds: `ExponentialBuckets(1, 2, 10)` (kata-containers, src/runtime/pkg/containerd-shim-v2/metrics.go).
const BUCKETS: usize = 10;

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Histogram {
    /// By bucket, each without those of the smaller ones. What takes longer than the last bound is counted in `count` alone.
    buckets: [u64; BUCKETS],
    count: u64,
    milliseconds: f64,
}

/// Durations by action. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Durations(Arc<Mutex<BTreeMap<String, Histogram>>>);

impl Durations {
    /// Counts one. There are as many histograms as there are names: they have to be ours.
    pub fn record(&self, action: &str, took: Duration) {
        let milliseconds = took.as_secs_f64() * 1e3;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let histogram = all.entry(action.to_owned()).or_default();
        histogram.count += 1;
        histogram.milliseconds += milliseconds;
        let bucket = bounds().position(|bound| milliseconds <= bound);
        if let Some(count) = bucket.and_then(|bucket| histogram.buckets.get_mut(bucket)) {
            *count += 1;
        }
    }

    /// Writes all of them as one family; the label is `action`. Without any there is no family.
    pub fn write(&self, text: &mut Text, name: &str, help: &str) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if all.is_empty() {
            return;
        }
        text.histogram(name, help);
        for (action, histogram) in &all {
            let action = ("action", action.as_str());
            let labels = if action.1.is_empty() { &[][..] } else { &[action][..] };
            let mut below = 0;
            for (bound, count) in bounds().zip(histogram.buckets) {
                below += count;
                let bound = bound.to_string();
                let labels: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
                text.part("bucket", &labels, below as f64);
            }
            let labels_of_all: Vec<_> = labels.iter().copied().chain([("le", "+Inf")]).collect();
            text.part("bucket", &labels_of_all, histogram.count as f64);
            text.part("sum", labels, histogram.milliseconds);
            text.part("count", labels, histogram.count as f64);
        }
    }
}

fn bounds() -> impl Iterator<Item = f64> {
    std::iter::successors(Some(1.0), |bound| Some(bound * 2.0)).take(BUCKETS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bucket_has_what_is_in_the_smaller_ones_and_the_last_has_all() {
        let durations = Durations::default();
        for milliseconds in [1, 3, 513] {
            durations.record("create", Duration::from_millis(milliseconds));
        }
        let mut text = Text::with_labels(&[("sandbox", "p")]);
        durations.write(&mut text, "kata_x_milliseconds", "X.");
        let text = text.finish();
        for line in [
            "# TYPE kata_x_milliseconds histogram",
            "kata_x_milliseconds_bucket{sandbox=\"p\",action=\"create\",le=\"1\"} 1",
            "kata_x_milliseconds_bucket{sandbox=\"p\",action=\"create\",le=\"2\"} 1",
            "kata_x_milliseconds_bucket{sandbox=\"p\",action=\"create\",le=\"512\"} 2",
            "kata_x_milliseconds_bucket{sandbox=\"p\",action=\"create\",le=\"+Inf\"} 3",
            "kata_x_milliseconds_sum{sandbox=\"p\",action=\"create\"} 517",
            "kata_x_milliseconds_count{sandbox=\"p\",action=\"create\"} 3",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in {text}");
        }
    }

    #[test]
    fn what_was_never_done_has_no_family() {
        let mut text = Text::default();
        Durations::default().write(&mut text, "kata_x", "X.");
        assert_eq!(text.finish(), "");
    }
}
