//! Reports operations that take long on standard error, so that they do not look like a hang.

use std::time::Duration;

/// What takes less is not worth a word.
const LONG: Duration = Duration::from_secs(1);

/// Does the work, and says what it is if it takes longer than a second.
pub(crate) async fn said<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return done,
        () = tokio::time::sleep(LONG) => crate::report::print_message(&format!("{what} …")),
    }
    work.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_work_is_done_whether_it_takes_long_or_not() {
        assert_eq!(said("quick", async { 1 }).await, 1);
        let slow = async {
            tokio::time::sleep(LONG + Duration::from_millis(100)).await;
            2
        };
        assert_eq!(said("slow", slow).await, 2);
    }
}
