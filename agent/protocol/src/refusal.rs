//! Reads the failure of a call from what its handler has returned.

use ttrpc::{Code, Response};

/// Why a call failed; None: it succeeded. A generated handler returns a service's own errors as an answer with another status than OK, and
/// what cannot be decoded as an error.
#[must_use]
pub fn refusal(answer: &ttrpc::Result<Response>) -> Option<String> {
    match answer {
        Ok(response) if response.status().code() == Code::OK => None,
        Ok(response) => Some(response.status().message().to_owned()),
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_another_status_than_ok_is_a_failure() {
        let answer = |code, message: &str| {
            let mut response = Response::new();
            response.set_status(ttrpc::get_status(code, message.to_owned()));
            Ok(response)
        };
        assert_eq!(refusal(&answer(Code::OK, "")), None);
        assert_eq!(refusal(&Ok(Response::new())), None);
        assert_eq!(refusal(&answer(Code::NOT_FOUND, "no c")), Some("no c".to_owned()));
        assert!(refusal(&Err(ttrpc::Error::Others("x".to_owned()))).is_some_and(|why| why.contains('x')));
    }
}
