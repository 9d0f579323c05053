package cmdline

// The tests of this package use the programs' own parsers, whose packages import
// it: they stand outside of it.

type OldWord = oldWord

func (w OldWord) Key() string { return w.key }

var (
	OldWords       = oldWords
	OldLogging     = oldLogging
	GonePluginsWhy = gonePluginsWhy
)
