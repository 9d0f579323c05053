package report

import (
	"fmt"
	"html"
	"slices"
	"strings"
)

// Curve is the values of one side, in the order of a Panel's X.
type Curve struct {
	Name   string
	Values []float64
}

// Panel is one diagram: each curve over the same X, from 0.
type Panel struct {
	Title  string // what is shown, with its unit
	X      []float64
	Labels []string // of X
	Curves []Curve
}

// The size of a panel, and of what surrounds its diagram.
const (
	panelWidth, panelHeight = 320, 220
	left, right, top, below = 56, 16, 36, 30
	columns                 = 2
)

// The colours can be told apart on light and dark pages, also without red and green.
var colours = []string{"#888888", "#1f77d0", "#d08a1f", "#7a4fc0"}

// SVG draws the panels side by side, two in a row, with one legend.
func SVG(panels []Panel) string {
	var b strings.Builder
	rows := (len(panels) + columns - 1) / columns
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11" fill="#888888">`+"\n",
		columns*panelWidth, rows*panelHeight+20)
	for i, p := range panels {
		fmt.Fprintf(&b, `<g transform="translate(%d,%d)">`+"\n", i%columns*panelWidth, i/columns*panelHeight)
		p.draw(&b)
		b.WriteString("</g>\n")
	}
	if len(panels) > 0 {
		for i, c := range panels[0].Curves {
			y := rows*panelHeight + 14
			fmt.Fprintf(&b, `<text x="%d" y="%d" fill="%s">%s</text>`+"\n", left+i*120, y, colour(i), html.EscapeString("— "+c.Name))
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func colour(i int) string { return colours[i%len(colours)] }

func (p Panel) draw(b *strings.Builder) {
	const width, height = panelWidth - left - right, panelHeight - top - below
	mostX, mostY := slices.Max(append([]float64{0}, p.X...)), 0.0
	for _, c := range p.Curves {
		mostY = max(mostY, slices.Max(append([]float64{0}, c.Values...)))
	}
	at := func(x, y float64) (float64, float64) {
		return left + width*part(x, mostX), top + height*(1-part(y, mostY))
	}
	fmt.Fprintf(b, `<text x="%d" y="20" font-weight="bold">%s</text>`+"\n", left, html.EscapeString(p.Title))
	fmt.Fprintf(b, `<path d="M%d %dV%dH%d" fill="none" stroke="#888888"/>`+"\n", left, top, top+height, left+width)
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text><text x="%d" y="%d" text-anchor="end">0</text>`+"\n",
		left-4, top+4, figure(mostY), left-4, top+height)
	for i, x := range p.X {
		px, _ := at(x, 0)
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", px, top+height+16, html.EscapeString(p.Labels[i]))
	}
	for i, c := range p.Curves {
		var points []string
		for j, y := range c.Values {
			px, py := at(p.X[j], y)
			points = append(points, fmt.Sprintf("%.1f,%.1f", px, py))
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", px, py, colour(i))
		}
		fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(points, " "), colour(i))
	}
}

// part is x as a part of most; 0 where there is nothing.
func part(x, most float64) float64 {
	if most == 0 {
		return 0
	}
	return x / most
}
