//! The manual page and the shells' completions, both from the definition of the command line.

use std::io;

use clap_complete::Shell;

use crate::Report;
use crate::arguments::definition;

/// What a shell reads to complete `kata-ctl`.
pub(crate) fn completions(shell: Shell) -> Report {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut definition(), "kata-ctl", &mut text);
    report(&text)
}

/// `kata-ctl(1)`, every subcommand in it.
pub(crate) fn page() -> io::Result<Report> {
    let mut command = definition();
    command.build();
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title("KATA-CTL")
        .render(&mut text)?;
    for sub in command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
    {
        let heading = format!("\n.SH \"KATA-CTL {}\"\n", sub.get_name().to_uppercase());
        text.extend_from_slice(heading.as_bytes());
        let page = clap_mangen::Man::new(sub.clone());
        page.render_synopsis_section(&mut text)?;
        page.render_description_section(&mut text)?;
        page.render_options_section(&mut text)?;
    }
    Ok(report(&text))
}

fn report(text: &[u8]) -> Report {
    Report {
        text: String::from_utf8_lossy(text).into_owned(),
        good: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_and_the_completions_know_every_subcommand() {
        let page = page().unwrap().text;
        let bash = completions(Shell::Bash).text;
        for sub in definition().get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let name = sub.get_name();
            assert!(bash.contains(name), "{name}");
            assert!(page.contains(&format!("KATA-CTL {}", name.to_uppercase())), "{name}");
        }
    }
}
