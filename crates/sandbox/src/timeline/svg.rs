//! The timeline as a picture.

use super::{Phase, Span};

const WIDTH: f64 = 900.0;
const LEFT: f64 = 190.0;
const ROW: f64 = 26.0;

fn colour(phase: Phase) -> &'static str {
    match phase {
        Phase::Caller => "#8a9ba8",
        Phase::Host => "#2b95d6",
        Phase::Vmm => "#7157d9",
        Phase::Kernel => "#d9822b",
        Phase::Agent => "#0f9960",
        Phase::Container => "#c22762",
    }
}

/// Draws a bar for each phase and each step, from its beginning to its end.
pub(super) fn draw(spans: &[Span]) -> String {
    let total = spans.iter().map(|span| span.end_ns).max().unwrap_or(0).max(1) as f64;
    let x = |ns: u64| LEFT + ns as f64 / total * (WIDTH - LEFT - 80.0);
    let height = ROW * spans.len() as f64 + 40.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"18\" font-weight=\"bold\">Start of a container, milliseconds</text>\n"
    );
    for (row, span) in spans.iter().enumerate() {
        let y = 30.0 + ROW * row as f64;
        let (name, indent, weight, bar) = match &span.step {
            Some(step) => (escaped(&step.name), 24.0, "normal", 12.0),
            None => (span.phase.name().to_owned(), 10.0, "bold", 16.0),
        };
        let width = (x(span.end_ns) - x(span.start_ns)).max(1.0);
        svg.push_str(&format!(
            "<text x=\"{indent}\" y=\"{:.1}\" font-weight=\"{weight}\">{name}</text>\
             <rect x=\"{:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{bar}\" fill=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{:.1}</text>\n",
            y + 13.0,
            x(span.start_ns),
            y,
            colour(span.phase),
            x(span.end_ns) + 6.0,
            y + 13.0,
            (span.end_ns - span.start_ns) as f64 / 1e6,
        ));
    }
    svg.push_str("</svg>\n");
    svg
}

/// The guest names its own steps.
fn escaped(name: &str) -> String {
    name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace(char::is_control, "")
}

#[cfg(test)]
mod tests {
    use super::{super::tests::usual, *};

    #[test]
    fn there_is_a_bar_for_each_span_and_no_markup_of_a_guests() {
        let mut timeline = usual();
        timeline.mark_at("guest", "<script>&", 2_000_000_000);
        let svg = timeline.svg();
        assert_eq!(svg.matches("<rect x=").count(), timeline.spans().len());
        assert!(svg.contains("&lt;script&gt;&amp;") && !svg.contains("<script>"));
        assert!(draw(&[]).ends_with("</svg>\n"));
    }
}
