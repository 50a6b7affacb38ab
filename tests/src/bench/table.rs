//! A row of the table, and the table for people and for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// What a figure counts. The ratio is that of costs: above 1 is always worse than the floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Seconds,
    Milliseconds,
    Mebibytes,
    MebibytesPerSecond,
    OperationsPerSecond,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Milliseconds => "ms",
            Self::Mebibytes => "MiB",
            Self::MebibytesPerSecond => "MiB/s",
            Self::OperationsPerSecond => "ops/s",
        }
    }

    fn is_rate(self) -> bool {
        match self {
            Self::Seconds | Self::Milliseconds | Self::Mebibytes => false,
            Self::MebibytesPerSecond | Self::OperationsPerSecond => true,
        }
    }
}

/// One measurement and its floor.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub what: String,
    /// What the floor is. Empty where there is none.
    pub floor_is: &'static str,
    /// The floor's figure, if there is a floor.
    pub floor: Option<f64>,
    pub value: f64,
    /// The unit of the value and the floor.
    pub unit: Unit,
    /// How many measurements the figures are the best of.
    pub count: usize,
}

impl Row {
    /// How many times the floor it costs.
    pub fn ratio(&self) -> Option<f64> {
        let floor = self.floor?;
        Some(if self.unit.is_rate() {
            floor / self.value
        } else {
            self.value / floor
        })
    }
}

/// The table for people: aligned, the ratio before the figures it is made of.
pub fn human(sections: &[(&str, Vec<Row>)]) -> String {
    let mut cells = vec![["", "ratio", "measured", "floor", "", "n", "the floor is"].map(String::from)];
    for (section, rows) in sections {
        for row in rows {
            let number = |number: Option<f64>| number.map_or_else(|| String::from("-"), figure);
            cells.push([
                format!("{section}: {}", row.what),
                row.ratio()
                    .map_or_else(|| String::from("-"), |ratio| format!("{ratio:.2}")),
                figure(row.value),
                number(row.floor),
                row.unit.name().to_owned(),
                row.count.to_string(),
                row.floor_is.to_owned(),
            ]);
        }
    }
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &cells {
        let [what, ratio, value, floor, unit, count, floor_is] = row;
        let line = format!(
            "{what:<0$}  {ratio:>1$}  {value:>2$}  {floor:>3$}  {unit:<4$}  {count:>5$}  {floor_is}",
            widths[0], widths[1], widths[2], widths[3], widths[4], widths[5]
        );
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// The same for programs: an array of objects.
pub fn json(sections: &[(&str, Vec<Row>)]) -> Value {
    let object = |section: &str, row: &Row| {
        json!({
            "section": section, "what": row.what, "unit": row.unit.name(), "value": row.value, "floor": row.floor,
            "floor_is": row.floor_is, "ratio": row.ratio(), "n": row.count,
        })
    };
    sections
        .iter()
        .flat_map(|(section, rows)| rows.iter().map(|row| object(section, row)))
        .collect()
}

/// Three significant digits.
fn figure(number: f64) -> String {
    match number {
        big if big >= 100.0 => format!("{big:.0}"),
        middle if middle >= 10.0 => format!("{middle:.1}"),
        small => format!("{small:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(unit: Unit, value: f64, floor: Option<f64>) -> Row {
        Row {
            what: String::from("x"),
            floor_is: "bare",
            floor,
            value,
            unit,
            count: 3,
        }
    }

    #[test]
    fn above_one_is_worse_whatever_is_counted() {
        assert_eq!(row(Unit::Seconds, 3.0, Some(2.0)).ratio(), Some(1.5));
        assert_eq!(row(Unit::MebibytesPerSecond, 50.0, Some(100.0)).ratio(), Some(2.0));
        assert_eq!(row(Unit::Seconds, 3.0, None).ratio(), None);
    }

    #[test]
    fn the_table_is_aligned_and_the_json_has_every_row() {
        let sections = [
            ("start", vec![row(Unit::Seconds, 3.0, Some(2.0))]),
            ("memory", vec![row(Unit::Mebibytes, 123.4, None)]),
        ];
        let text = human(&sections);
        let columns: Vec<_> = text.lines().skip(1).map(|line| line.find(" 3  bare")).collect();
        assert!(columns[0].is_some() && columns[0] == columns[1], "{text}");
        let value = json(&sections);
        assert_eq!(value[0]["ratio"], 1.5);
        assert_eq!(value[1]["floor"], Value::Null);
    }
}
