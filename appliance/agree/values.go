package agree

import (
	"fmt"
	"strconv"
	"strings"

	"kthwd/appliance/program"
)

// hashedAsRead follows the ID of the key in records whose HMACs are of values as they are read.
const hashedAsRead = " as read"

// given is a flag of this controller.
type given struct {
	written   string // all its values, or the last one where that is what counts
	read      string // the same as the program reads it
	isDefault bool   // it has the value that it has when it is not given
}

// givenOnce reads the flags of this controller, at the first call, by "program key".
func (c *Controllers) givenOnce() map[string]given {
	c.once.Do(func() {
		c.given = map[string]given{}
		for name, args := range c.Args {
			for _, a := range args {
				if _, again := c.given[name+" "+a.Key]; !again {
					c.given[name+" "+a.Key] = c.readGiven(name, a.Key, program.Values(args, a.Key))
				}
			}
		}
	})
	return c.given
}

func (c *Controllers) readGiven(name, key string, values []string) given {
	g := given{written: strings.Join(values, ",")}
	g.read = g.written
	if c.Read == nil {
		return g
	}
	is, otherwise, ok := c.Read(name, key, values...)
	if !ok {
		return g
	}
	g.read, g.isDefault = is, is == otherwise
	if last := values[len(values)-1]; len(values) > 1 {
		if one, _, ok := c.Read(name, key, last); ok && one == is {
			g.written = last
		}
	}
	return g
}

// reads is what a program makes of a flag in the record of a controller.
func (c *Controllers) reads(r record, id string) string {
	value, isGiven := r.Plain[id]
	if c.Read == nil {
		return value
	}
	name, key, _ := strings.Cut(id, " ")
	var values []string
	if isGiven {
		values = []string{r.withUnit(name, key, value)}
	}
	at := fmt.Sprintf("%s %q", id, values)
	c.mu.Lock()
	known, isKnown := c.known[at]
	c.mu.Unlock()
	if isKnown {
		return known
	}
	if is, _, ok := c.Read(name, key, values...); ok {
		value = is
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil || len(c.known) > mostKnown { // values of members that are gone
		c.known = map[string]string{}
	}
	c.known[at] = value
	return value
}

// mostKnown bounds the readings that are remembered.
const mostKnown = 1000

// withUnit adds the unit that etcd reads in a number of its periodic compaction: hours.
func (r record) withUnit(name, key, value string) string {
	mode, isGiven := r.Plain[program.Etcd+" auto-compaction-mode"]
	if _, err := strconv.ParseUint(value, 10, 32); err == nil && name == program.Etcd && key == "auto-compaction-retention" && (!isGiven || mode == "periodic") {
		return value + "h"
	}
	return value
}

// alikeAsRead reports whether a flag means the same in all records.
func alikeAsRead(all map[string]record, id string, reads func(record, string) string) bool {
	distinct := map[string]bool{}
	for _, r := range all {
		distinct[reads(r, id)] = true
	}
	return len(distinct) <= 1
}
