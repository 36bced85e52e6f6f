//! A guide in Markdown, read as its reader does: which commands stand where, in which order, and what is said before them.
//!
//! A test that runs a guide takes its commands from here and not from a copy, so that whoever changes the guide changes
//! the test. All that may be put into a command is what its text leaves to the reader: a gap, written `...`, which
//! [`fill`] closes with what a program has printed, and a word that stands for a name, for which there is [`put`].
//!
//! Of Markdown as much is understood as such a guide takes: headings with `#`, and blocks between lines of three backticks.

use anyhow::{Context as _, bail, ensure};

/// How a block begins and ends.
const FENCE: &str = "```";
/// What is left to the reader.
const GAP: &str = "...";

/// A guide's blocks, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guide {
    steps: Vec<Step>,
}

/// A block of commands, or of what belongs into a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The heading it stands under, without its `#`.
    pub section: String,
    /// What is said before it, since the heading or the block before, as one line.
    pub before: String,
    /// The block.
    pub text: String,
    /// The line of the file at which it begins, counted from one.
    pub line: usize,
}

impl Guide {
    /// Reads a guide.
    ///
    /// # Errors
    ///
    /// If its last block has no end.
    pub fn read(text: &str) -> anyhow::Result<Self> {
        let mut steps = Vec::new();
        let (mut section, mut before) = (String::new(), Vec::new());
        let mut block: Option<(usize, Vec<&str>)> = None;
        for (index, line) in text.lines().enumerate() {
            match &mut block {
                Some((first, lines)) if line.starts_with(FENCE) => {
                    let step = Step {
                        section: section.clone(),
                        before: std::mem::take(&mut before).join(" "),
                        text: lines.join("\n"),
                        line: *first,
                    };
                    steps.push(step);
                    block = None;
                }
                Some((_, lines)) => lines.push(line),
                None if line.starts_with(FENCE) => block = Some((index + 2, Vec::new())),
                None if line.starts_with('#') => {
                    line.trim_start_matches('#').trim().clone_into(&mut section);
                    before.clear();
                }
                None => before.extend(Some(line.trim()).filter(|line| !line.is_empty())),
            }
        }
        if let Some((line, _)) = block {
            bail!("the block at line {line} has no end");
        }
        Ok(Self { steps })
    }

    /// The blocks that stand under this heading itself.
    ///
    /// # Errors
    ///
    /// If there are none.
    pub fn section(&self, heading: &str) -> anyhow::Result<Vec<&Step>> {
        let steps: Vec<&Step> = self.steps.iter().filter(|step| step.section == heading).collect();
        ensure!(!steps.is_empty(), "nothing is to be done under {heading:?}");
        Ok(steps)
    }
}

impl Step {
    /// Which of these phrases the text says last before the block, in whatever case; of two that end at the same place, the
    /// longer one.
    pub fn said_last<'a, T>(&self, phrases: &'a [(&str, T)]) -> Option<&'a T> {
        let before = self.before.to_lowercase();
        let place = |phrase: &str| before.rfind(phrase).map(|at| (at + phrase.len(), phrase.len()));
        let said = phrases.iter().filter_map(|(phrase, meant)| Some((place(&phrase.to_lowercase())?, meant)));
        said.max_by_key(|(place, _)| *place).map(|(_, meant)| meant)
    }
}

/// Closes the gaps of a command, `...`, with what stands there in the line that a program printed. The rest must be the
/// same in both; a `sudo` before the command is the guide's alone.
///
/// # Errors
///
/// If the printed line is not what the guide says that it is.
pub fn fill(command: &str, printed: &str) -> anyhow::Result<String> {
    let printed = printed.split_whitespace().collect::<Vec<_>>().join(" ");
    let (sudo, rest) = match command.strip_prefix("sudo ") {
        Some(rest) => ("sudo ", rest),
        None => ("", command),
    };
    let mut parts = rest.split(GAP);
    let first = parts.next().unwrap_or_default();
    let mut left = printed
        .strip_prefix(first)
        .with_context(|| format!("the guide says {command:?}, what is printed is {printed:?}"))?;
    for part in parts {
        // A gap is never empty; the last one goes to the end.
        let end = if part.is_empty() { Some(left.len()) } else { left.find(part) };
        let end = end
            .filter(|end| *end > 0)
            .with_context(|| format!("{part:?} of the guide is not in what is printed: {printed:?}"))?;
        left = &left[end + part.len()..];
    }
    ensure!(left.is_empty(), "the guide says nothing of {left:?}, which is printed");
    Ok(format!("{sudo}{printed}"))
}

/// Puts what is meant in place of words that stand for it, as `NODE`. Only whole words are replaced.
///
/// # Errors
///
/// If a word is not there at all.
pub fn put(text: &str, meanings: &[(&str, &str)]) -> anyhow::Result<String> {
    let mut text = text.to_owned();
    for (word, meaning) in meanings {
        let mut put = String::new();
        let mut left = text.as_str();
        let mut found = false;
        while let Some(at) = left.find(word) {
            let (head, tail) = (&left[..at], &left[at + word.len()..]);
            put.push_str(head);
            let whole = !put.ends_with(is_of_a_word) && !tail.starts_with(is_of_a_word);
            found |= whole;
            put.push_str(if whole { meaning } else { word });
            left = tail;
        }
        ensure!(found, "{word} is not in {text:?}");
        put.push_str(left);
        text = put;
    }
    Ok(text)
}

/// Whether a text has this word, as [`put`] finds it.
#[must_use]
pub fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(is_of_a_word) && !text[at + word.len()..].starts_with(is_of_a_word)
    })
}

/// What a word is continued with: a name of a machine, or of a variable.
fn is_of_a_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_' || letter == '-'
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Title\n\nWords.\n\n## One\n\nOn every machine, `pi`\nincluded:\n\n```\na\n\n  b # not a heading\n```\n\nand on\n`pi`:\n\n```sh\nc\n```\n## Two\n\n```\nd\n```\n";

    #[test]
    fn blocks_stand_under_their_headings_with_what_is_said_before() {
        let guide = Guide::read(TEXT).unwrap();
        let one = guide.section("One").unwrap();
        assert_eq!(
            one.iter().map(|step| step.text.as_str()).collect::<Vec<_>>(),
            ["a\n\n  b # not a heading", "c"]
        );
        assert_eq!(one[0].before, "On every machine, `pi` included:");
        assert_eq!(one[0].line, 11);
        assert_eq!(one[1].before, "and on `pi`:");
        assert_eq!(guide.section("Two").unwrap()[0].before, "");
        assert!(guide.section("Title").is_err(), "it has no block of its own");
        assert!(guide.section("Three").is_err());
    }

    #[test]
    fn a_block_without_an_end_is_an_error() {
        let said = Guide::read("x\n\n```\na\n").unwrap_err().to_string();
        assert_eq!(said, "the block at line 4 has no end");
    }

    #[test]
    fn where_something_is_done_is_what_was_said_last() {
        let step = |before: &str| Step {
            section: String::new(),
            before: before.to_owned(),
            text: String::new(),
            line: 1,
        };
        let phrases = [("every machine", 1), ("on `pi`", 2), ("every other machine", 3), ("machine", 4)];
        assert_eq!(step("Much about `pi`. On every machine, `pi` included:").said_last(&phrases), Some(&1));
        assert_eq!(step("On every machine. Then, on `pi`:").said_last(&phrases), Some(&2));
        assert_eq!(step("On `pi`; on every other machine:").said_last(&phrases), Some(&3));
        assert_eq!(step("nowhere").said_last(&phrases), None);
    }

    #[test]
    fn gaps_are_closed_with_what_was_printed() {
        let template = "sudo mesh-agent join pi --token ... --hash sha256:...";
        let printed = "mesh-agent join pi --token a.b --hash sha256:00ff";
        assert_eq!(fill(template, printed).unwrap(), format!("sudo {printed}"));
        let printed = "kubeadm join 10.90.0.1:6443 --token a.b \\\n\t--hash sha256:1".replace("\\\n", "");
        let filled = fill("sudo kubeadm join ... --token ... --hash sha256:...", &printed).unwrap();
        assert_eq!(filled, "sudo kubeadm join 10.90.0.1:6443 --token a.b --hash sha256:1");
    }

    #[test]
    fn a_printed_line_of_another_kind_is_an_error() {
        for (template, printed) in [
            ("a ... --b", "a 1 --c"),
            ("a ... --b", "a  --b"),
            ("a ... --b", "a 1 --b --c"),
            ("a ...", "b 1"),
            ("a --b 1", "a --b 2"),
        ] {
            assert!(fill(template, printed).is_err(), "{template:?} with {printed:?}");
        }
    }

    #[test]
    fn whole_words_are_put_in() {
        let text = "drain NODE --x=NODE MY-NODE NODES";
        assert_eq!(put(text, &[("NODE", "pi")]).unwrap(), "drain pi --x=pi MY-NODE NODES");
        assert_eq!(put("a=\"ADDRESS\"", &[("ADDRESS", "::1")]).unwrap(), "a=\"::1\"");
        assert!(put("nothing", &[("NODE", "pi")]).is_err());
        assert_eq!(put("MESH_TOKEN=TOKEN", &[("TOKEN", "a.b")]).unwrap(), "MESH_TOKEN=a.b");
        assert!(has_word("A=NODE", "NODE") && !has_word("MY_NODE NODES", "NODE"));
    }
}
