// Package attack tries on the real binary what an attacker would: each test is an
// attack that once worked, and fails now. It needs no root.
package attack
