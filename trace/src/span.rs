//! A span in the making, and the place in a trace that a task has.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::{Context, Record};

/// For whom something is done (OpenTelemetry's SpanKind).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A step of the program's own.
    Internal,
    /// A request that the program answers.
    Server,
}

/// Takes the spans that have ended. It must not wait.
type Sink = Arc<dyn Fn(Record) + Send + Sync>;

/// A span to which others can be added.
#[derive(Clone)]
pub struct Place {
    context: Context,
    sink: Sink,
    carried_on: bool,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({})", self.context)
    }
}

tokio::task_local! {
    static CURRENT: Place;
}

/// The place of the current task; None: nothing is traced.
#[must_use]
pub fn current() -> Option<Place> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Does something as a step of the current task's span, with a span of its own.
///
/// # Errors
/// Those of `work`.
pub async fn step<T, E>(
    name: &str,
    work: impl Future<Output = Result<T, E>>,
    describe: impl FnOnce(&E) -> String,
) -> Result<T, E> {
    match current() {
        None => work.await,
        Some(place) => place.start(name, Kind::Internal).run(work, describe).await,
    }
}

/// The same work, to be done in a task of its own that has the place of the current one.
pub fn carried<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    let place = current();
    async move {
        match place {
            None => work.await,
            Some(place) => place.scope(work).await,
        }
    }
}

impl Place {
    /// A place below `context`. `carried_on` says whether the requests that are made from it name it.
    #[must_use]
    pub fn new(context: Context, carried_on: bool, sink: impl Fn(Record) + Send + Sync + 'static) -> Self {
        Self {
            context,
            sink: Arc::new(sink),
            carried_on,
        }
    }

    /// The span that it is.
    #[must_use]
    pub fn context(&self) -> Context {
        self.context
    }

    /// What a request from here says of it.
    #[must_use]
    pub fn traceparent(&self) -> Option<String> {
        self.carried_on.then(|| self.context.to_string())
    }

    /// Begins a span below this one.
    #[must_use]
    pub fn start(&self, name: &str, kind: Kind) -> Span {
        self.begin(name, kind, self.context.child(), Some(self.context))
    }

    /// Begins the span that this place stands for. It has no parent.
    #[must_use]
    pub fn start_itself(&self, name: &str, kind: Kind) -> Span {
        self.begin(name, kind, self.context, None)
    }

    fn begin(&self, name: &str, kind: Kind, context: Context, parent: Option<Context>) -> Span {
        let record = Record {
            context,
            parent,
            name: name.to_owned(),
            kind,
            start: now(),
            end: 0,
            attributes: BTreeMap::new(),
            error: None,
        };
        Span {
            place: Place {
                context,
                ..self.clone()
            },
            record: Some(record),
            began: Instant::now(),
        }
    }

    /// Has a future's task be here.
    pub async fn scope<T>(self, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self, work).await
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// A span in the making. If it is dropped, what it was about was given up.
#[derive(Debug)]
pub struct Span {
    place: Place,
    /// None once it has ended.
    record: Option<Record>,
    began: Instant,
}

impl Span {
    /// Where its steps belong.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place.clone()
    }

    /// Says what it is done on.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        if let Some(record) = &mut self.record {
            record.attributes.insert(name.to_owned(), value.into());
        }
    }

    /// Ends it, with the reason if it failed.
    pub fn end(mut self, error: Option<String>) {
        self.finish(error);
    }

    /// Does something in this span, and ends it.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn run<T, E>(
        self,
        work: impl Future<Output = Result<T, E>>,
        describe: impl FnOnce(&E) -> String,
    ) -> Result<T, E> {
        let done = self.place().scope(work).await;
        self.end(done.as_ref().err().map(describe));
        done
    }

    fn finish(&mut self, error: Option<String>) {
        let Some(mut record) = self.record.take() else { return };
        // A clock that is set meanwhile does not change how long it took.
        let took = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        record.end = record.start.saturating_add(took);
        record.error = error;
        (self.place.sink)(record.bounded());
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.finish(Some("given up".to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn recorder() -> (Place, Arc<Mutex<Vec<Record>>>) {
        let spans = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&spans);
        let place = Place::new(Context::root(), true, move |span| kept.lock().unwrap().push(span));
        (place, spans)
    }

    #[tokio::test]
    async fn a_step_is_the_child_of_the_span_whose_task_it_is_in() {
        let (root, spans) = recorder();
        let mut span = root.start("Create", Kind::Server);
        span.set("container", "c");
        let done: Result<(), String> = span
            .run(
                step("attach", async { Err("no such file".to_owned()) }, String::clone),
                Clone::clone,
            )
            .await;
        assert!(done.is_err());
        let spans = spans.lock().unwrap();
        let [attach, create] = &spans[..] else {
            panic!("{spans:?}")
        };
        assert_eq!((attach.name.as_str(), attach.parent), ("attach", Some(create.context)));
        assert_eq!(create.parent, Some(root.context()));
        assert_eq!(create.error.as_deref(), Some("no such file"));
        assert_eq!(create.attributes["container"], "c");
        assert!(create.start <= attach.start && attach.end - attach.start <= create.end - create.start);
    }

    #[tokio::test]
    async fn a_task_of_its_own_can_be_where_its_parent_is() {
        let (root, _) = recorder();
        let here = root.clone().scope(async {
            let carried = tokio::spawn(carried(async { current() })).await.unwrap();
            let left = tokio::spawn(async { current() }).await.unwrap();
            (carried.map(|place| place.context()), left.is_none())
        });
        assert_eq!(here.await, (Some(root.context()), true));
    }

    #[tokio::test]
    async fn without_a_trace_a_step_is_just_done() {
        assert!(current().is_none());
        assert_eq!(step("attach", async { Ok::<_, String>(7) }, String::clone).await, Ok(7));
    }

    #[test]
    fn a_span_that_is_dropped_was_given_up() {
        let (root, spans) = recorder();
        drop(root.start("attach", Kind::Internal));
        root.start_itself("boot", Kind::Internal).end(None);
        let spans = spans.lock().unwrap();
        assert_eq!(spans[0].error.as_deref(), Some("given up"));
        assert_eq!((spans[1].context, spans[1].parent), (root.context(), None));
        assert_eq!(spans[1].error, None);
    }
}
