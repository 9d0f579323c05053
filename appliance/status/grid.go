package status

import "strings"

// grid is a table of the page. On a narrow screen each row becomes a list of its cells
// with the names of their columns, so that nothing is lost beyond the edge.
type grid struct {
	ID, Caption string
	Columns     []gridColumn
	Rows        [][]pageCell
}

type gridColumn struct {
	Name   string
	Number bool
}

// pageCell is a cell of a grid. add sets Column and Number.
type pageCell struct {
	Text   string
	Tone   string // of a state
	But    string // what the state does not say
	Class  string
	Column string
	Number bool
}

// newGrid makes a grid without rows. A column whose name begins with # has numbers.
func newGrid(id, caption string, columns ...string) grid {
	g := grid{ID: id, Caption: caption}
	for _, c := range columns {
		name, number := strings.CutPrefix(c, "#")
		g.Columns = append(g.Columns, gridColumn{name, number})
	}
	return g
}

func (g *grid) add(cells ...pageCell) {
	for i := range cells {
		cells[i].Column, cells[i].Number = g.Columns[i].Name, g.Columns[i].Number
	}
	g.Rows = append(g.Rows, cells)
}

func plain(text string) pageCell { return pageCell{Text: text} }

// why is a cell with a sentence.
func why(text string) pageCell {
	if text == "" {
		return pageCell{}
	}
	return pageCell{Text: text, Class: "why"}
}
