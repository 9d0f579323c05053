// Package attack attacks the real binary: each test is an attack that once succeeded
// and now fails. It needs no root.
package attack
