//! Measurements of several kinds, taken in turns.

use crate::Result;

/// The smallest of `count` measurements of each kind, taken in turns: what disturbs the machine then hits all kinds.
///
/// # Errors
/// The first measurement that fails.
pub(super) fn best_in_turns<const KINDS: usize>(
    count: usize,
    mut measure: impl FnMut(usize) -> Result<f64>,
) -> Result<[f64; KINDS]> {
    let mut best = [f64::INFINITY; KINDS];
    for _ in 0..count {
        for (kind, best) in best.iter_mut().enumerate() {
            *best = best.min(measure(kind)?);
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_each_kind_is_taken_and_the_kinds_take_turns() {
        let figures = [5.0, 50.0, 4.0, 60.0, 6.0, 40.0];
        let mut order = Vec::new();
        let best = best_in_turns::<2>(3, |kind| {
            order.push(kind);
            Ok(figures[order.len() - 1])
        })
        .unwrap();
        assert_eq!(best, [4.0, 40.0]);
        assert_eq!(order, [0, 1, 0, 1, 0, 1]);
    }
}
