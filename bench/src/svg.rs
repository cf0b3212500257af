//! The timeline as a picture.

use sandbox::timeline::Step;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 170.0;
const ROW: f64 = 26.0;

/// Draws one bar per step, from the end of the one before it to its own.
pub fn draw(steps: &[Step]) -> String {
    let total = steps.last().map_or(1, |step| step.at_ns.max(1)) as f64;
    let x = |ns: u64| LEFT + ns as f64 / total * (WIDTH - LEFT - 80.0);
    let height = ROW * steps.len() as f64 + 40.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"18\" font-weight=\"bold\">Start of a container, milliseconds</text>\n"
    );
    let mut from = 0;
    for (row, step) in steps.iter().enumerate() {
        let y = 30.0 + ROW * row as f64;
        let colour = match step.actor.as_str() {
            "guest" => "#d9822b",
            "vmm" => "#7157d9",
            _ => "#2b95d6",
        };
        let width = (x(step.at_ns) - x(from)).max(1.0);
        svg.push_str(&format!(
            "<text x=\"10\" y=\"{:.1}\">{}</text><rect x=\"{:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"16\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{:.1}</text>\n",
            y + 13.0,
            step.name,
            x(from),
            y,
            x(step.at_ns) + 6.0,
            y + 13.0,
            (step.at_ns - from) as f64 / 1e6,
        ));
        from = step.at_ns;
    }
    svg.push_str("</svg>\n");
    svg
}
