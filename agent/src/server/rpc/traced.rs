//! Records a span of each request that names its place in the host's trace (`traceparent`). A request without one costs a
//! lookup.

use std::sync::Arc;

use async_trait::async_trait;
use trace::{Context, Kind, Place, Record};
use ttrpc::r#async::{MethodHandler, Service as Methods, TtrpcContext};
use ttrpc::{Request, Response};

type Spans = Arc<dyn Fn(Record) + Send + Sync>;

struct Traced {
    inner: Box<dyn MethodHandler + Send + Sync>,
    /// As in the protocol: `create_container`.
    name: String,
    spans: Spans,
}

#[async_trait]
impl MethodHandler for Traced {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let Some(parent) = parent(&context) else {
            return self.inner.handler(context, request).await;
        };
        let spans = Arc::clone(&self.spans);
        let span = Place::new(parent, false, move |span| spans(span)).start(&self.name, Kind::Server);
        let answer = span.place().scope(self.inner.handler(context, request)).await;
        span.end(protocol::refusal(&answer));
        answer
    }
}

fn parent(context: &TtrpcContext) -> Option<Context> {
    context.metadata.get(trace::TRACEPARENT)?.first()?.parse().ok()
}

pub(crate) fn trace(table: &mut Methods, spans: impl Fn(Record) + Send + Sync + 'static) {
    let spans: Spans = Arc::new(spans);
    let methods = std::mem::take(&mut table.methods).into_iter();
    table.methods = methods
        .map(|(name, inner)| {
            let traced = Traced {
                inner,
                name: snake(&name),
                spans: Arc::clone(&spans),
            };
            (name, Box::new(traced) as Box<dyn MethodHandler + Send + Sync>)
        })
        .collect();
}

/// `CreateContainer` as Kata's agent calls it: `create_container`.
fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 2);
    for (position, letter) in name.char_indices() {
        if letter.is_ascii_uppercase() && position > 0 {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_the_names_of_katas_agent() {
        assert_eq!(snake("CreateContainer"), "create_container");
        assert_eq!(snake("Exec"), "exec");
    }
}
