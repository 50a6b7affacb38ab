//! The command line of `kata-ctl memlock`.

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Question {
    /// The container's id
    pub(super) container: String,
    /// containerd's namespace, where containers of several have this id
    #[arg(long, value_name = "NAMESPACE")]
    pub(super) namespace: Option<String>,
    /// Another process than the first: its pid inside the container
    #[arg(long, value_name = "PID")]
    pub(super) pid: Option<u32>,
    /// Data pages of the buffer that is tried on each CPU: a power of two; 0 tries none
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = pages)]
    pub(super) pages: u32,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

fn pages(text: &str) -> Result<u32, String> {
    let number = text.parse::<u32>().ok();
    let number = number.filter(|number| *number == 0 || number.is_power_of_two());
    number.ok_or_else(|| "must be a power of two, or 0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::pages;

    #[test]
    fn pages_are_a_power_of_two_or_none() {
        assert_eq!((pages("64"), pages("0")), (Ok(64), Ok(0)));
        for text in ["3", "-1", "x", "4294967296"] {
            assert!(pages(text).is_err(), "{text}");
        }
    }
}
